from support.benchmarks import with_section

DOCUMENT = "# Benchmarks\n\n## One\n\nfirst\n\n## Two\n\n### inner\n\nsecond\n"


def test_a_section_is_replaced_and_the_others_stay() -> None:
    assert with_section(DOCUMENT, "One", "new\n") == DOCUMENT.replace("first", "new")
    assert with_section(DOCUMENT, "Two", "new") == "# Benchmarks\n\n## One\n\nfirst\n\n## Two\n\nnew\n"


def test_a_section_that_is_not_there_is_appended() -> None:
    assert with_section(DOCUMENT, "Three", "third\n") == DOCUMENT + "\n## Three\n\nthird\n"
    assert with_section("# Benchmarks\n", "One", "first") == "# Benchmarks\n\n## One\n\nfirst\n"


def test_the_same_text_changes_nothing() -> None:
    assert with_section(DOCUMENT, "One", "first\n") == DOCUMENT
