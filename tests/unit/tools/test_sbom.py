"""The bill of materials is valid CycloneDX, has every package with its version, and depends on nothing else."""

import json
from importlib.metadata import distributions
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from tools import sbom

BASE_DIGEST = "sha256:" + "0123456789abcdef" * 4
WHEEL_HASH = "fedcba9876543210" * 4
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n'
LISTING = (
    "installed\tlibstdc++6\t1:14.2.0-19+b1~deb13\tamd64\tgcc-14\t14.2.0-19\n"
    "config-files\tremoved\t1.0\tall\tremoved\t1.0\n"
    "installed\ttzdata\t2026a-0+deb13u1\tall\ttzdata\t2026a-0+deb13u1\n"
)
PIP_REPORT = json.dumps(
    {
        "install": [
            {
                "metadata": {"name": "PyYAML", "version": "6.0.3"},
                "download_info": {
                    "url": "https://registry.example/a.whl",
                    "archive_info": {"hashes": {"sha256": WHEEL_HASH}},
                },
            }
        ]
    }
)
INSTALLED = [("PyYAML", "6.0.3"), ("typing_extensions", "4.15.0"), ("memdiag", "0.1.0")]


def bill(listing: str = LISTING, installed: list[tuple[str, str]] = INSTALLED) -> dict[str, object]:
    return sbom.document(
        "memdiag-operator",
        "0.1.0",
        {"revision": "0123abc", "source": "https://git.example.org/memdiag"},
        [
            *sbom.python_components(installed, sbom.read_wheel_hashes(PIP_REPORT)),
            *sbom.debian_components(listing, sbom.read_os_release(OS_RELEASE)),
            sbom.base_component("debian:trixie-slim", BASE_DIGEST),
        ],
    )


def test_it_is_what_the_formats_own_schema_allows() -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill())) is None


def test_packages_that_are_removed_are_not_in_it() -> None:
    names = {one["name"]: one["version"] for one in bill()["components"]}  # type: ignore[attr-defined] # plain JSON
    assert names == {
        "debian:trixie-slim": BASE_DIGEST,
        "libstdc++6": "1:14.2.0-19+b1~deb13",
        "tzdata": "2026a-0+deb13u1",
        "memdiag": "0.1.0",
        "pyyaml": "6.0.3",
        "typing-extensions": "4.15.0",
    }


def test_a_package_url_is_the_one_that_its_reference_library_makes() -> None:
    for one in sbom.debian_components(LISTING, sbom.read_os_release(OS_RELEASE)):
        qualifiers = {"arch": "all" if one["name"] == "tzdata" else "amd64", "distro": "debian-13"}
        made = PackageURL("deb", "debian", one["name"], one["version"], qualifiers)
        assert one["purl"] == made.to_string()
    for one in sbom.python_components(INSTALLED, {}):
        assert one["purl"] == PackageURL("pypi", None, one["name"], one["version"]).to_string()


def test_a_wheel_has_its_hash_and_no_address() -> None:
    components = {one["name"]: one for one in sbom.python_components(INSTALLED, sbom.read_wheel_hashes(PIP_REPORT))}
    assert components["pyyaml"]["hashes"] == [{"alg": "SHA-256", "content": WHEEL_HASH}]
    assert "hashes" not in components["memdiag"]  # built from the sources
    assert "registry.example" not in json.dumps(bill())


def test_the_order_in_which_packages_are_found_does_not_matter() -> None:
    reordered = bill("".join(reversed(LISTING.splitlines(keepends=True))), INSTALLED[::-1])
    assert json.dumps(reordered) == json.dumps(bill())


@pytest.mark.parametrize("digest", ["", "latest", "sha256:12", BASE_DIGEST.upper()])
def test_without_the_base_images_digest_there_is_none(
    digest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text(PIP_REPORT)
    words = [
        "--name=a",
        "--version=1",
        "--revision=0123",
        "--source=here",
        "--base-name=debian",
        f"--site-packages={tmp_path}",
        f"--pip-report={report}",
    ]
    assert sbom.main([*words, f"--base-digest={digest}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "make release-images" in said.err


def test_of_this_machine_it_lists_every_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The packages of this environment, compared with those that importlib.metadata finds on its own path."""
    report = tmp_path / "report.json"
    report.write_text(PIP_REPORT)
    site_packages = Path(pytest.__file__).parents[1]
    words = [
        "--name=a",
        "--version=1",
        "--revision=0123",
        "--source=here",
        "--base-name=debian",
        f"--site-packages={site_packages}",
    ]
    assert sbom.main([*words, f"--base-digest={BASE_DIGEST}", f"--pip-report={report}"]) == 0
    text = capsys.readouterr().out
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {one["purl"].partition("@")[0] for one in json.loads(text)["components"] if "purl" in one}
    assert len([purl for purl in found if purl.startswith("pkg:pypi/")]) == len(
        {one.metadata["Name"].lower().replace("_", "-") for one in distributions(path=[str(site_packages)])}
    )
    assert "pkg:deb/debian/libc6" in found
