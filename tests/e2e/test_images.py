"""The images say what they are made of, and the same inputs make images of the same packages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from local_cluster import image_build, image_store, provenance
from local_cluster.paths import PROJECT

LABEL = "org.opencontainers.image"
BUILD = """\
import sys
from pathlib import Path
from local_cluster.cache import Cache
from local_cluster.image_build import ImageBuilder
from local_cluster.paths import cache_root
work, folder = map(Path, sys.argv[1:])
ImageBuilder(Cache(cache_root()), work, work / "log").build_sboms(folder, from_cache=False)
"""

pytestmark = pytest.mark.timeout(900)  # one test installs everything again
each_image = pytest.mark.parametrize("target", image_build.TARGETS)


@pytest.fixture(scope="module")
def store() -> Path:
    """The images as they are run."""
    if os.geteuid() != 0:
        pytest.skip("the e2e tier needs root: images are built and unpacked in namespaces")
    return image_store.provide()


@pytest.fixture(scope="module")
def bills(store: Path) -> dict[str, bytes]:
    """Each image's bill of materials, as it lies beside the images."""
    return {target: (store / image_store.SBOMS / f"{target}.cdx.json").read_bytes() for target in image_build.TARGETS}


def packages(bill: bytes, kind: str) -> dict[str, str]:
    """Names and versions of one kind of package URL."""
    components: list[dict[str, Any]] = json.loads(bill)["components"]
    return {one["name"]: one["version"] for one in components if one.get("purl", "").startswith(f"pkg:{kind}/")}


@each_image
def test_labels_say_what_an_image_was_built_from(
    store: Path, bills: dict[str, bytes], target: str, tmp_path: Path
) -> None:
    labels = image_store.image_labels(store, image_build.TARGETS[target], tmp_path / "log")
    assert labels[f"{LABEL}.version"] == provenance.version()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels[f"{LABEL}.revision"])
    assert labels[f"{LABEL}.source"]
    assert labels[f"{LABEL}.base.name"] == f"localhost/memdiag-base:{image_build.base_key()}"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", labels[f"{LABEL}.base.digest"])
    (base,) = [one for one in json.loads(bills[target])["components"] if one["type"] == "container"]
    assert (base["name"], base["version"]) == (labels[f"{LABEL}.base.name"], labels[f"{LABEL}.base.digest"])


@each_image
def test_the_bill_of_materials_lists_what_is_in_the_image(
    store: Path, bills: dict[str, bytes], target: str, tmp_path: Path
) -> None:
    """Compared with dpkg's own record and with the folders that pip has made."""
    root = tmp_path / "root"
    image_store.copy_root(store, image_build.TARGETS[target], root, tmp_path / "log")
    assert (root / "opt/memdiag/sbom.cdx.json").read_bytes() == bills[target]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bills[target].decode()) is None
    stanzas = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    fields = [dict(re.findall(r"^(Package|Version|Status): (.*)$", one, re.MULTILINE)) for one in stanzas]
    installed = {one["Package"]: one["Version"] for one in fields if one.get("Status", "").endswith(" installed")}
    assert packages(bills[target], "deb") == installed
    (site_packages,) = (root / "opt/memdiag/lib").glob("python3*/site-packages")
    wheels = [path.name.removesuffix(".dist-info").rpartition("-") for path in site_packages.glob("*.dist-info")]
    assert packages(bills[target], "pypi") == {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in wheels
    }
    assert packages(bills[target], "pypi")["memdiag"] == provenance.version()


def test_a_second_build_from_another_checkout_has_the_same_packages(bills: dict[str, bytes], tmp_path: Path) -> None:
    """Nothing comes from the cache but the base image. The package archives are an input too: when they have moved on
    since the images were built, two builds of now are compared."""
    again = built_in_another_checkout(tmp_path / "second")
    if again != bills and {target: without_debian(bill) for target, bill in again.items()} == {
        target: without_debian(bill) for target, bill in bills.items()
    }:
        assert built_in_another_checkout(tmp_path / "third") == again
    else:
        assert again == bills


def without_debian(bill: bytes) -> list[dict[str, Any]]:
    components: list[dict[str, Any]] = json.loads(bill)["components"]
    return [one for one in components if not one["bom-ref"].startswith("pkg:deb/")]


def built_in_another_checkout(folder: Path) -> dict[str, bytes]:
    checkout, work, sboms = folder / "checkout", folder / "work", folder / "sboms"
    for path in (*image_build.build_context(), Path(".dockerignore")):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / path, checkout / path)
    shutil.copytree(PROJECT / "local_cluster", checkout / "local_cluster")
    work.mkdir()
    command: list[str | Path] = [sys.executable, "-c", BUILD, work, sboms]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {target: (sboms / f"{target}.cdx.json").read_bytes() for target in image_build.TARGETS}
