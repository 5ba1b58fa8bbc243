"""The rooms of lyttle_ops: imports only go downwards, and nothing in it imports webapi."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "lyttle_ops"
# A room may import from rooms that stand after it.
ORDER = [
    "cli",
    "deploy",
    "local",
    "node",
    "legacy",
    "certificates",
    "accounts",
    "proxies",
    "nginx",
    "ports",
    "cluster",
    "db",
    "settings",
    "logs",
    "clock",
    "xdg",
    "errors",
]
NEVER = {("nginx", "certificates"), ("certificates", "nginx")}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "webapi":
                found.add("webapi")
            if parts[0] == "lyttle_ops" and len(parts) > 1:
                found.add(parts[1])
    return found


def test_imports_only_go_downwards() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in ORDER, f"{path}: a room that has no place in the order"
        for other in imported(path) & {*ORDER, "webapi"}:
            upward = other == "webapi" or (other != room and ORDER.index(other) < ORDER.index(room))
            if upward or (room, other) in NEVER:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == []
