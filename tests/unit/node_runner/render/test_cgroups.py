"""Removed memory cgroups and killed processes in the report."""

from memdiag_api import limits
from memdiag_api.containers import OomKill, RemovedCgroups, RemovedGroupShare
from memdiag_node.render.cgroups import oom_kills_lines, removed_cgroups_lines
from memdiag_node.render.text import WIDTH
from support.report_records import MIB, oom_kills, removed_cgroups


def test_nothing_to_report_is_no_section() -> None:
    assert oom_kills_lines([]) == []
    assert removed_cgroups_lines(None) == []


def test_removed_cgroups_that_hold_little_have_no_section() -> None:
    small = RemovedCgroups(live=6, removed=3, percpu_bytes=11_424, struct_bytes=22_296, file_bytes=0, anon_bytes=0)
    assert removed_cgroups_lines(small) == []
    assert removed_cgroups_lines(small.model_copy(update={"file_bytes": MIB})) != []


def test_removed_cgroups_have_what_they_hold_and_where_they_were() -> None:
    found = removed_cgroups_lines(removed_cgroups())
    assert found[0].endswith("1,600 (+12 in the window) are not freed, and hold 565 MiB; 84 exist")
    assert "page cache 500 MiB, anonymous and shared memory 48.0 MiB" in found[1]
    assert [line.split() for line in found[-4:]] == [
        ["474", "MiB", "1,520", "below", "/kubepods/burstable"],
        ["60.0", "MiB", "40", "pod", "7b035816-50bd-46b7-9262-f7351f13e0aa"],
        ["14.0", "MiB", "3", "container", "c0ffeec0ffee"],
        ["and", "37", "more", "in", "other", "places"],
    ]


def test_a_killed_process_has_its_time_limit_and_container() -> None:
    _, _, *found = [line.split() for line in oom_kills_lines(oom_kills())]
    assert found[0] == ["12", "min", "706", "MiB", "768", "MiB", "java[4711]", "container", "c0ffeec0ffee"]
    assert found[2] == ["2", "h", "4.00", "GiB", "the", "node", "postgres[88]", "-"]
    assert " ".join(found[3]) == "largest in the node then: active_anon 20.0 GiB, slab_unreclaimable 2.00 GiB"


def test_a_kill_of_which_the_log_shows_little() -> None:
    kill = oom_kills()[0].model_copy(
        update={"seconds_ago": None, "limit_bytes": None, "container_id": "", "limit_path": "", "classes_bytes": {}}
    )
    assert [line.split() for line in oom_kills_lines([kill])[2:]] == [["-", "706", "MiB", "-", "java[4711]", "-"]]


def test_the_sections_are_short_and_narrow_even_if_every_list_is_full() -> None:
    share = RemovedGroupShare(path="/" + "p" * 252, groups=2**60, charged_bytes=2**60)
    kill = OomKill.model_validate(
        {
            **oom_kills()[0].model_dump(),
            "comm": "/" * 256,
            "container_id": "",
            "limit_path": "/" + "p" * 252,
            "classes_bytes": {"k" * 64 + str(number): 2**62 for number in range(limits.MAX_OOM_CLASSES)},
        }
    )
    removed = removed_cgroups().model_copy(update={"removed": 2**62, "shares": [share] * 8})
    for found, most in (
        (removed_cgroups_lines(removed), 12),
        (oom_kills_lines([kill] * limits.MAX_OOM_KILLS), 60),
    ):
        assert 5 < len(found) <= most
        assert max(map(len, found)) <= WIDTH
    assert oom_kills_lines([kill] * limits.MAX_OOM_KILLS)[-1] == "  and 8 more before"
