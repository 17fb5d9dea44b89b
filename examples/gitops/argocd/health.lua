-- Health of a MemoryDiagnosis for Argo CD, which provides `obj` and only the library table: strings have no methods
-- here. argocd-cm.yaml in this folder contains a copy.

local function health(status, message)
  return { status = status, message = message or "" }
end

local meta, spec, status = obj.metadata, obj.spec or {}, obj.status or {}
local suspended = spec.suspend and not spec.terminate

if status.conditions == nil or status.observedGeneration ~= meta.generation then
  return health("Progressing", "memdiag's operator has not seen this spec yet")
end

local requested = meta.annotations and meta.annotations["memdiag.dev/requestedAt"]
local handled = requested == nil or requested == "" or requested == status.lastHandledRequest
for _, request in ipairs(status.handledRequests or {}) do
  handled = handled or request == requested
end
if not handled then
  if suspended then
    return health("Suspended", "another run was requested, and spec.suspend is true")
  end
  return health("Progressing", "another run was requested and has not started yet")
end

for _, condition in ipairs(status.conditions) do
  if condition.type == "Succeeded" then
    if condition.status == "True" then
      return health("Healthy", status.summary or condition.message)
    elseif condition.status == "False" then
      return health("Degraded", condition.reason .. ": " .. (condition.message or ""))
    elseif condition.reason == "Suspended" then
      return health("Suspended", condition.message)
    end
    return health("Progressing", condition.message)
  end
end
return health("Progressing", "memdiag's operator has not reported yet")
