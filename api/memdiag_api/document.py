"""Reading an evidence document: the runner checks what it publishes, the operator what it receives."""

from pydantic import ValidationError

from memdiag_api.evidence import Evidence


class DocumentError(ValueError):
    """The bytes are not a usable evidence document; the message says why."""


def read_document(document: bytes) -> Evidence:
    """Parse `document` strictly and check every reference in it.

    Raises DocumentError for the first error.
    """
    try:
        evidence = Evidence.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise DocumentError(f"its document is malformed ({first_fault(error)})") from error
    check_references(evidence)
    return evidence


def check_references(evidence: Evidence) -> None:
    """Raise DocumentError if `evidence` refers to a holder or a stack that it does not list."""
    verdict = evidence.verdict
    findings = [finding.evidence for finding in evidence.findings]
    holders = [verdict.holder, *(held.holder for stack in evidence.stacks for held in stack.held_by)]
    stacks = [verdict.stack, *(filled.stack for holder in evidence.holders for filled in holder.filled_by)]
    holders += [index for references in findings for index in references.holders]
    stacks += [index for references in findings for index in references.stacks]
    if any(index is not None and index >= len(evidence.holders) for index in holders):
        raise DocumentError("its document refers to a holder that it does not list")
    if any(index is not None and index >= len(evidence.stacks) for index in stacks):
        raise DocumentError("its document refers to a stack that it does not list")


def first_fault(error: ValidationError) -> str:
    """Return the first error that pydantic found, with its place."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}" if place else fault["msg"]
