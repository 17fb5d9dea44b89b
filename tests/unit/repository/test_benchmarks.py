from support.benchmarks import with_section

DOCUMENT = "# Benchmarks\n\n## One\n\nfirst\n\n## Two\n\n### inner\n\nsecond\n"


def test_a_section_is_replaced_and_the_others_are_kept() -> None:
    assert with_section(DOCUMENT, "One", "new\n") == DOCUMENT.replace("first", "new")
    assert with_section(DOCUMENT, "Two", "new") == "# Benchmarks\n\n## One\n\nfirst\n\n## Two\n\nnew\n"


def test_a_missing_section_is_appended() -> None:
    assert with_section(DOCUMENT, "Three", "third\n") == DOCUMENT + "\n## Three\n\nthird\n"
    assert with_section("# Benchmarks\n", "One", "first") == "# Benchmarks\n\n## One\n\nfirst\n"


def test_the_same_text_does_not_change_the_document() -> None:
    assert with_section(DOCUMENT, "One", "first\n") == DOCUMENT
