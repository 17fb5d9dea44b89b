"""The health of an object in Argo CD and Flux, by the files in examples/gitops and in runtimes like theirs."""

from typing import Any

import yaml
from cel_expr_python import cel
from lupa import lua51

from local_cluster.paths import PROJECT

FOLDER = PROJECT / "examples/gitops"
HEALTH = (FOLDER / "argocd/health.lua").read_text()
RERUN = (FOLDER / "argocd/rerun.lua").read_text()
FLUX = yaml.safe_load((FOLDER / "flux/kustomization.yaml").read_text())["spec"]["healthCheckExprs"][0]

# Argo CD's Lua is gopher-lua, which is Lua 5.1, with the libraries base, package and table; os must be required, and
# has only time and date (argo-cd: util/lua/lua.go, oslib_safe.go). Without their library, strings have no methods.
_SANDBOX = """
local safe = { time = os.time, date = os.date }
getmetatable("").__index = nil
for _, name in ipairs({ "string", "math", "io", "debug", "coroutine", "os" }) do
  _G[name] = nil
  package.loaded[name] = nil
end
package.preload.os = function() return safe end
package.path, package.cpath = "", ""
"""


def argo_health(item: dict[str, Any], script: str = HEALTH) -> tuple[str, str]:
    """Health status and message of `item`, as returned by health.lua."""
    answer = _run_lua(script, item)
    assert set(answer) == {"status", "message"}, answer
    return str(answer["status"]), str(answer["message"])


def argo_rerun(item: dict[str, Any]) -> dict[str, Any]:
    """The object after the action "rerun"."""
    changed: dict[str, Any] = _run_lua(RERUN, item)
    return changed


def flux_status(item: dict[str, Any]) -> str:
    """InProgress, Failed or Current, in the order of Flux (fluxcd/pkg: runtime/cel/status_evaluator.go)."""
    status = item.get("status", {})
    if "observedGeneration" in status and status["observedGeneration"] != item["metadata"]["generation"]:
        return "InProgress"
    for name in ("inProgress", "failed", "current"):
        if _evaluate(FLUX[name], item):
            return name[0].upper() + name[1:]
    return "InProgress"


def _evaluate(expression: str, item: dict[str, Any]) -> bool:
    # Flux only parses expressions: nothing is declared beforehand, and a missing field is an error.
    value = cel.NewEnv().compile(expression, disable_check=True).eval(data=item).plain_value()
    assert isinstance(value, bool), value
    return value


def _run_lua(script: str, item: dict[str, Any]) -> Any:
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.execute(_SANDBOX)
    lua.globals()["python"] = None
    lua.globals()["obj"] = _to_lua(lua, item)
    return _from_lua(lua.execute(script))


def _to_lua(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({key: _to_lua(lua, inner) for key, inner in value.items()})
    if isinstance(value, list):
        return lua.table_from([_to_lua(lua, inner) for inner in value])
    return value


def _from_lua(value: Any) -> Any:
    if lua51.lua_type(value) != "table":
        return value
    if list(value.keys()) == list(range(1, len(value) + 1)) and len(value):
        return [_from_lua(inner) for inner in value.values()]
    return {key: _from_lua(inner) for key, inner in value.items()}
