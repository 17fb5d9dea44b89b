"""The images list their contents, and the same inputs make images with the same packages."""

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

from local_cluster import image_build, image_store, provenance, registries
from local_cluster.paths import PROJECT, cache_root

LABEL = "org.opencontainers.image"
BUILD = """\
import sys
from pathlib import Path
from local_cluster.cache import Cache
from local_cluster.image_build import ImageBuilder
from local_cluster.paths import cache_root
work, folder = map(Path, sys.argv[1:])
ImageBuilder(Cache(cache_root()), work, work / "log").build_sboms(folder)
"""

pytestmark = pytest.mark.timeout(900)  # one test reinstalls everything
each_image = pytest.mark.parametrize("target", image_build.TARGETS)


@pytest.fixture(scope="module")
def store() -> Path:
    """The images as used in the cluster."""
    if os.geteuid() != 0:
        pytest.skip("the e2e tier needs root: images are built and unpacked in namespaces")
    return image_store.provide()


@pytest.fixture(scope="module")
def bills(store: Path) -> dict[str, bytes]:
    """Each image's bill of materials, as stored next to the images."""
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
    bill = json.loads(bills[target])
    properties = {one["name"]: one["value"] for one in bill["metadata"]["component"]["properties"]}
    assert properties == {f"{LABEL}.{key}": labels[f"{LABEL}.{key}"] for key in ("revision", "source")}
    (base,) = [one for one in bill["components"] if one["type"] == "container"]
    assert (base["name"], base["version"]) == (labels[f"{LABEL}.base.name"], labels[f"{LABEL}.base.digest"])


@each_image
def test_the_bill_of_materials_lists_what_is_in_the_image(
    store: Path, bills: dict[str, bytes], target: str, tmp_path: Path
) -> None:
    """Compared with dpkg's own record and with the folders that pip has created."""
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
    """Only the base image comes from the cache. The package archives are an input too: if they have changed since the
    images were built, two new builds are compared."""
    first, second = components(bills), components(built_in_another_checkout(tmp_path / "second"))
    if first != second and without_debian(first) == without_debian(second):
        first = components(built_in_another_checkout(tmp_path / "third"))
    assert first == second


Components = dict[str, list[dict[str, Any]]]


def components(bills: dict[str, bytes]) -> Components:
    """The components of each image, in the order of its bill of materials."""
    return {target: json.loads(bill)["components"] for target, bill in bills.items()}


def without_debian(components: Components) -> Components:
    return {
        target: [one for one in found if not one["bom-ref"].startswith("pkg:deb/")]
        for target, found in components.items()
    }


def another_checkout(folder: Path) -> Path:
    """The files that images are built from, and the code that builds them."""
    for path in (*image_build.build_context(), Path(".dockerignore")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / path, folder / path)
    shutil.copytree(PROJECT / "local_cluster", folder / "local_cluster", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def built_in_another_checkout(folder: Path) -> dict[str, bytes]:
    work, sboms = folder / "work", folder / "sboms"
    work.mkdir(parents=True)
    command: list[str | Path] = [sys.executable, "-c", BUILD, work, sboms]
    done = subprocess.run(
        command, cwd=another_checkout(folder / "checkout"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {target: (sboms / f"{target}.cdx.json").read_bytes() for target in image_build.TARGETS}


# --- make release-images ----------------------------------------------------------------------------------------------

REPOSITORY, SOURCE = "localhost/released", "https://git.example.org/memdiag"


@pytest.fixture
def commit(tmp_path: Path) -> str:
    """The commit of an unmodified checkout in tmp_path / "checkout"."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    git: list[str | Path] = ["git", "-C", another_checkout(tmp_path / "checkout"), *identity]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def in_buildahs_store(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that sees earlier builds of this machine as its own."""
    inside = ["unshare", "--mount", "--propagation=slave", "sh", "-c", 'mount --bind "$0" /var/lib && exec "$@"']
    words: list[str | Path] = [*inside, cache_root() / "buildah", *command]
    environment = {**os.environ, "STORAGE_DRIVER": "overlay"}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def release_images(folder: Path, base: str) -> subprocess.CompletedProcess[str]:
    options = ["--layers", "--pull=never", "--isolation=chroot", "--network=host", *registries.mounts(folder)]
    named = [f"--repository={REPOSITORY}", f"--base-image={base}", f"--source={SOURCE}", f"--sboms={folder / 'dist'}"]
    command = [sys.executable, "-m", "local_cluster", "release-images", "--builder=buildah", *named, "--", *options]
    return in_buildahs_store(*command, cwd=folder / "checkout")


def test_a_release_is_built_from_a_commit_on_a_base_image_whose_digest_is_known(
    store: Path, bills: dict[str, bytes], commit: str, tmp_path: Path
) -> None:
    del store
    done = release_images(tmp_path, f"localhost/memdiag-base:{image_build.base_key()}")
    images = [f"{REPOSITORY}/{target}:{provenance.version()}" for target in image_build.TARGETS]
    try:
        assert done.returncode == 0, done.stderr
        assert [line.split()[-1] for line in done.stdout.splitlines() if " push " in line] == images
        for image in images:
            inspected = json.loads(in_buildahs_store("buildah", "inspect", "--type=image", image).stdout)
            labels = inspected["OCIv1"]["config"]["Labels"]
            assert labels[f"{LABEL}.revision"] == commit
            assert labels[f"{LABEL}.source"] == SOURCE
            assert labels[f"{LABEL}.base.digest"] in bills["operator"].decode()
        released = {target: (tmp_path / f"dist/{target}.cdx.json").read_bytes() for target in image_build.TARGETS}
        assert components(released) == components(bills)
        assert all(commit.encode() in bill for bill in released.values())
    finally:
        in_buildahs_store("buildah", "rmi", *images)


def test_a_release_is_not_built_if_the_base_images_digest_is_unknown(commit: str, tmp_path: Path) -> None:
    del commit
    done = release_images(tmp_path, "localhost/no-such-base:1")
    assert done.returncode != 0
    assert "localhost/no-such-base:1" in done.stderr + done.stdout
    assert "or specify a digest: BASE_IMAGE=NAME@sha256:..." in done.stderr + done.stdout
    assert not (tmp_path / "dist").exists()
