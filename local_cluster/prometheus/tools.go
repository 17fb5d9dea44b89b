//go:build tools

// Package prometheus pins promtool, which checks metrics and alert rules, with go.mod and go.sum.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
