"""Which kernels the library has, and whether `manifest.json` was made from today's."""

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Kernels by module and name, and what their launch is called in launches.json.
LAUNCHES = {
    "embed._embed": "embed",
    "attention_triton._norm_project": "norm_project",
    "attention_hopper._norm_project": "hopper_norm_project",
    "attention_triton._attend": "attend",
    "attention_hopper._attend": "hopper_attend",
    "attention_triton._attend_project": "attend_project",
    "attention_triton._project": "project",
    "mlp._mlp": "mlp",
    "mlp_hopper._mlp": "hopper_mlp",
    "mlp._finish": "mlp_finish",
    "heads._sum": "heads_sum",
    "heads._points": "heads_points",
    "heads._taps": "heads_taps",
    "heads._cameras": "heads_cameras",
    "compose_project._compose_project": "compose_project",
}
_BESIDE = ("attention", "camera_math", "common", "gluon_names")  # imported by those modules


def digests() -> dict[str, str]:
    """SHA-256 of what decides over the kernels' code: modules, and rows of launches.json."""
    modules = sorted({name.split(".")[0] for name in LAUNCHES} | set(_BESIDE))
    found = {
        f"kernels/{module}.py": (ROOT / "kernels" / f"{module}.py").read_bytes()
        for module in modules
    }
    families = json.loads((ROOT / "kernels/launches.json").read_text())
    rows = {
        family: {name: table[name] for name in LAUNCHES.values() if name in table}
        for family, table in families.items()
    }
    found["rows of kernels/launches.json"] = json.dumps(rows, sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
