"""Log lines know which diagnosis and which run they are about."""

import asyncio
import logging

from memdiag_operator.run_log import SubjectFilter, about, of_run


def fields(logger: logging.Logger, text: str) -> dict[str, str]:
    record = logger.makeRecord(logger.name, logging.INFO, "file", 1, text, (), None)
    assert SubjectFilter().filter(record)
    return {key: getattr(record, key) for key in ("diagnosis", "runID") if hasattr(record, key)}


def test_a_line_carries_the_diagnosis_and_then_the_run_also_in_threads() -> None:
    logger = logging.getLogger("anything")

    async def work(name: str, run: str) -> list[dict[str, str]]:
        with about(name):
            first = fields(logger, "before the run is known")
            of_run(None)
            await asyncio.sleep(0)  # another diagnosis has its turn
            of_run(run)
            return [first, await asyncio.to_thread(fields, logger, "in a thread")]

    async def both() -> list[list[dict[str, str]]]:
        return list(await asyncio.gather(work("a", "run-a"), work("b", "run-b")))

    assert asyncio.run(both()) == [
        [{"diagnosis": "a"}, {"diagnosis": "a", "runID": "run-a"}],
        [{"diagnosis": "b"}, {"diagnosis": "b", "runID": "run-b"}],
    ]
    assert fields(logger, "about nothing") == {}
