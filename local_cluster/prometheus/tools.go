//go:build tools

// Package prometheus pins, by go.mod and go.sum, the promtool that checks metrics and alert rules.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
