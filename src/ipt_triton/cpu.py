"""What the CPU at hand computes in INT8 and BF16, by the flags that Linux lists; needs no runtime."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni")
_BF16 = ("amx_bf16", "avx512_bf16")
_EXPORT = "run ipt-export CHECKPOINT with --precision fp32"


def cpu_facts() -> dict[str, str]:
    """What Linux lists of the first core, by name (`model name`, `flags`, …); nothing on other systems."""
    try:
        first, _, _ = CPUINFO.read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return {}
    entries = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in entries}


def cpu_flags() -> frozenset[str]:
    """Flags of the first core of an x86-64 CPU; none where the system does not list them."""
    return frozenset(cpu_facts().get("flags", "").split())


def int8_instructions(flags: frozenset[str]) -> str:
    """The best instructions for INT8, as Linux names them; 'unknown' where no flags are listed."""
    return next((name for name in (*_INT8, "avx512f", "avx2") if name in flags), "unknown")


def has_vnni(flags: frozenset[str]) -> bool:
    """Whether the CPU adds products of 8 bits in 32 bits, without 16 bits between."""
    return not flags.isdisjoint(_INT8)


def has_bf16(flags: frozenset[str]) -> bool:
    """Whether the CPU multiplies matrices in BF16."""
    return not flags.isdisjoint(_BF16)


def cpu_notes(precision: str, flags: frozenset[str]) -> list[str]:
    """What differs on this CPU for a repository of this precision, one sentence each."""
    if not flags:
        return []
    if precision == "int8" and not has_vnni(flags):
        return [
            "this CPU has no VNNI instructions: INT8 restores as well as with them, but more slowly than FP32; "
            f"for speed {_EXPORT}"
        ]
    if precision == "bf16" and not has_bf16(flags) and "avx_ne_convert" not in flags:
        return [
            "this CPU has no BF16 instructions: OpenVINO refuses BF16 or computes it more slowly than FP32; "
            f"for this CPU {_EXPORT}"
        ]
    return []
