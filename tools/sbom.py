"""Write an image's software bill of materials (CycloneDX 1.6, JSON): every Debian package and every Python package.

Runs in the image during the build (see Dockerfile) and uses only the standard library. The output has neither a time
nor a serial number: the same packages produce the same bytes.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

_DPKG_FIELDS = ("db:Status-Status", "Package", "Version", "Architecture", "source:Package", "source:Version")

Component = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document to standard output; returns the exit status."""
    options = _parser().parse_args(arguments)
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", options.base_digest):
        print(
            f"sbom.py: the base image's digest is {options.base_digest!r}, not sha256:<64 hex digits>: build with "
            "`make release-images`, or pass --build-arg BASE_DIGEST=sha256:... to `docker build`",
            file=sys.stderr,
        )
        return 1
    release = read_os_release(Path("/etc/os-release").read_text())
    columns = "\t".join(f"${{{field}}}" for field in _DPKG_FIELDS) + "\n"
    listing = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={columns}"], capture_output=True, text=True, check=True
    ).stdout
    installed = [(one.metadata["Name"], one.version) for one in distributions(path=[str(options.site_packages)])]
    components = [
        base_component(options.base_name, options.base_digest),
        *debian_components(listing, release),
        *python_components(installed, read_wheel_hashes(options.pip_report.read_text())),
    ]
    origin = {"revision": options.revision, "source": options.source}
    json.dump(document(options.name, options.version, origin, components), sys.stdout, indent=1)
    print()
    return 0


def document(name: str, version: str, origin: Mapping[str, str], components: Iterable[Component]) -> dict[str, Any]:
    """The bill of materials of the image `name`; `origin` has the values of the labels of the same names."""
    properties = [{"name": f"org.opencontainers.image.{key}", "value": value} for key, value in origin.items()]
    image = {"bom-ref": name, "type": "container", "name": name, "version": version, "properties": properties}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": sorted(components, key=lambda one: str(one["bom-ref"])),
    }


def base_component(name: str, digest: str) -> Component:
    """The image on which this one is built."""
    return {
        "bom-ref": f"base:{name}@{digest}",
        "type": "container",
        "name": name,
        "version": digest,
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
    }


def debian_components(listing: str, release: Mapping[str, str]) -> list[Component]:
    """Every installed package in dpkg-query's `listing`, each with its source package."""
    vendor, distribution = release["ID"], f"{release['ID']}-{release['VERSION_ID']}"
    found = []
    for line in listing.splitlines():
        status, name, version, architecture, source, source_version = line.split("\t")
        if status != "installed":  # removed, with its configuration files left
            continue
        purl = f"pkg:deb/{vendor}/{_quoted(name)}@{_quoted(version)}?arch={architecture}&distro={distribution}"
        found.append(
            {
                "bom-ref": purl,
                "type": "library",
                "name": name,
                "version": version,
                "purl": purl,
                "properties": [{"name": "memdiag:source-package", "value": f"{source} {source_version}"}],
            }
        )
    return found


def python_components(installed: Iterable[tuple[str, str]], wheel_hashes: Mapping[str, str]) -> list[Component]:
    """Every installed distribution, with the SHA-256 of its wheel if pip has downloaded one."""
    found = []
    for name, version in installed:
        normal = _normal(name)
        purl = f"pkg:pypi/{normal}@{_quoted(version)}"
        component: Component = {"bom-ref": purl, "type": "library", "name": normal, "version": version, "purl": purl}
        if digest := wheel_hashes.get(normal):
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        found.append(component)
    return found


def read_wheel_hashes(pip_report: str) -> dict[str, str]:
    """Hashes by normalized name, from the output of `pip install --report`."""
    return {
        _normal(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"]
        for one in json.loads(pip_report)["install"]
    }


def read_os_release(text: str) -> dict[str, str]:
    """The fields of os-release(5)."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip("\"'") for name, _, value in pairs}


def _normal(name: str) -> str:
    """A Python distribution's normalized name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _quoted(text: str) -> str:
    """Quoted for a package URL, which keeps the colon."""
    return quote(text, safe=":")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the image's name")
    parser.add_argument("--version", required=True, help="the image's version")
    parser.add_argument("--revision", required=True, help="the commit that the image is built from")
    parser.add_argument("--source", required=True, help="where that commit can be found")
    parser.add_argument("--base-name", required=True, help="the base image's name")
    parser.add_argument("--base-digest", required=True, help="the base image's digest")
    parser.add_argument("--site-packages", required=True, type=Path, help="directory of the Python packages")
    parser.add_argument("--pip-report", required=True, type=Path, help="output file of `pip install --report`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
