"""Compiling eBPF: the only module that imports bcc."""

import ctypes
import importlib.util
import mmap
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memdiag_node.kernel.errors import BpfError

_HEADERS = Path(__file__).parent
_STUB_HEADERS = _HEADERS / "stubs"
_INCLUDE = re.compile(r'#include "([\w./]+\.bpf\.h)"')
_QUIET_FLAGS = ("-Wno-everything", "-fno-color-diagnostics")
_MAX_LOG_CHARACTERS = 2_000
_MAX_LOG_BYTES = 1 << 20
_COMPILER_CODE = re.compile(r" r-xp .*/lib(LLVM|clang)[^/]*$")
_MAX_C_INT = 0x7FFFFFFF


def has_bcc() -> bool:
    """Whether a module of that name is installed; `import_bcc` checks that it is the right one."""
    return importlib.util.find_spec("bcc") is not None


def compile_source(source: Path, defines: Mapping[str, int]) -> Any:
    """Compile a `.bpf.c` file to a bcc.BPF; `defines` become preprocessor integers.

    Raises BpfError if bcc is missing, or with the compiler's own message.
    """
    bcc = import_bcc()
    text = "".join(_expanded(source, set())).encode()
    flags = [*_QUIET_FLAGS, f"-DLINUX_VERSION_CODE={_version_code(platform.release())}"]
    flags += [f"-D{name}={_c_integer(value)}" for name, value in defines.items()]
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, such as the kernel's BTF, before the compiler takes its share
    with _stub_headers(), captured_stderr() as log:
        try:
            module = bcc.BPF(text=text, cflags=flags)
        except Exception as error:  # bcc raises bare Exception for everything
            raise BpfError(f"{source.name} does not compile: {_first_errors(log()) or error}") from error
    _release_compiler_memory()
    return module


def _expanded(path: Path, included: set[Path]) -> Iterator[str]:
    """The lines of a source with those of its headers, each once: `*.bpf.h`, relative to it or to this package.

    The compiler could include them itself, but bcc finds programs and map accesses in the main file only.
    """
    yield f'#line 1 "{path.name}"\n'
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        match = _INCLUDE.match(line)
        if not match:
            yield line
            continue
        beside = path.parent / match[1]
        header = (beside if beside.exists() else _HEADERS / match[1]).resolve()
        if header not in included:
            included.add(header)
            yield from _expanded(header, included)
            yield f'#line {number + 1} "{path.name}"\n'


def import_bcc() -> Any:
    """The module of Debian's python3-bpfcc. Raises BpfError if it is missing or is another module of that name."""
    is_first = "bcc" not in sys.modules
    try:
        import bcc
    except ImportError as error:
        raise BpfError(
            f"bcc cannot be imported ({error}); install the distribution's python3-bpfcc "
            "(the package named bcc on PyPI is another project)"
        ) from error
    if not hasattr(bcc, "BPF"):
        raise BpfError(f"{bcc.__file__} is not the eBPF library; install the distribution's python3-bpfcc")
    if is_first:
        _release_compiler_memory()  # the dynamic linker has read much of the libraries that compiling does not need
    return bcc


def _release_compiler_memory() -> None:
    """Release the compiler's memory: its heap, and its code, which is paged in again when needed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc_trim(0)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if _COMPILER_CODE.search(line):
            start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _c_integer(value: int) -> str:
    return f"{value}ULL" if value > _MAX_C_INT else str(value)


def _version_code(release: str) -> int:
    """LINUX_VERSION_CODE of a kernel release such as "6.12.9-amd64" (kernel: Makefile)."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if numbers is None:
        raise BpfError(f"the kernel release {release!r} does not start with a version")
    major, minor, patch = (int(number or 0) for number in numbers.groups())
    return (major << 16) + (minor << 8) + min(patch, 255)


def _first_errors(log: str) -> str:
    """The compiler's error lines, without notes and quoted source."""
    lines = [line.strip() for line in log.splitlines() if "error" in line]
    return "; ".join(lines or log.split("\n"))[:_MAX_LOG_CHARACTERS].strip()


@contextmanager
def _stub_headers() -> Iterator[None]:
    """Make bcc find our stub headers in place of the kernel's."""
    name = "BCC_KERNEL_SOURCE"
    before = os.environ.get(name)
    os.environ[name] = str(_STUB_HEADERS)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def captured_stderr() -> Iterator[Any]:
    """Collect what C++ code writes to the stderr descriptor; yields a function that returns the text so far."""
    sink = os.memfd_create("bcc-messages")
    kept = os.dup(2)
    os.dup2(sink, 2)
    try:
        yield lambda: os.pread(sink, _MAX_LOG_BYTES, 0).decode(errors="replace")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
