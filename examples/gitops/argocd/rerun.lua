-- The action "rerun" of a MemoryDiagnosis in Argo CD: requests another run.
local os = require("os")
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["memdiag.dev/requestedAt"] = os.date("!%Y-%m-%dT%XZ")
return obj
