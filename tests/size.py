"""How large nanomed is, and in which direction its modules import one another: `make size`.

    python tests/size.py

The lesson is what README's reading order names. The path is traced: the command of `make adapt` runs on the
bundled model until its first update; counted are the modules that it imported and the functions it called.
"""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_clm", "train_cls", "train_sft", "eval")
WALK = ("base", "text", "models", "hub", "training", "evaluation", "systems", "demo", "commands")
COMMANDS = ("nanomed.tasks", "nanomed.reproduce", "nanomed.quantise", "nanomed.python", "nanomed.calling")
COMMANDS += ("nanomed.asking", *SCRIPTS)


def modules() -> dict[str, Path]:
    """{dotted name: file} of the package and the scripts."""
    found = {}
    for path in [*(ROOT / "nanomed").rglob("*.py"), *(ROOT / f"{name}.py" for name in SCRIPTS)]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[tuple[str, int, int]]:
    """(name, first line, number of lines) of every function, methods and inner ones included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        (n.name, min([n.lineno, *(d.lineno for d in n.decorator_list)]), n.end_lineno - n.lineno + 1)
        for n in found
    ]


def room(module: str) -> str:
    """The part of the house that a module is in, a name of WALK."""
    if module in COMMANDS:
        return "commands"
    part = module.split(".")[1] if module.startswith("nanomed.") else "base"
    return part if part in WALK else "base"


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name in known}


def against_the_walk() -> list[tuple[str, str]]:
    known = modules()
    order = {name: WALK.index(room(name)) for name in known}
    pairs = [(name, other) for name, path in known.items() for other in imports(path, known)]
    return sorted((a, b) for a, b in pairs if order[b] > order[a])


def circles() -> list[list[str]]:
    """Groups of modules that import one another, by way of others too (Tarjan 1972)."""
    known = modules()
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in known:
        if name not in index:
            visit(name)
    return found


def lesson() -> list[Path]:
    """The files of the package and the scripts that README's reading order names, without the demo's."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    order = re.search(r"^## [^\n]*reading order\n(.*?)^## ", text, re.M | re.S).group(1)
    named = dict.fromkeys(re.findall(r"`((?:[\w/]+/)?\w+\.py)`", order))
    known, folder, found = modules(), None, []
    for name in named:
        candidates = [ROOT / name, *([folder / name] if folder else [])]
        path = next((p for p in candidates if p in known.values()), None)
        if path:
            folder = path.parent
            found.append(path)
    return [path for path in found if "demo" not in path.parts]


def walked(script: str, *flags: str) -> dict:
    """Until a command's first update: the modules that are imported, those of which a function is called,
    and how many lines the called functions have together."""
    with tempfile.TemporaryDirectory() as out:
        args = [sys.executable, __file__, "--trace", script, *flags, "--out", f"{out}/run", "--device", "cpu"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NANOMED_CACHE": f"{out}/cache", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(args, cwd=ROOT, env=env, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    if not last or not last[0].startswith("{"):
        raise RuntimeError(f"{script} came to no update: {done.stderr[-2000:]}")
    return json.loads(last[0])


def trace(script: str) -> None:
    """Run a script in this process, and print what walked() gives once it calls one_update(). What is called
    while a module is imported does not count."""
    called, ours, importing = set(), {str(path): name for name, path in modules().items()}, 0

    def note(frame, event, argument):
        nonlocal importing
        code = frame.f_code
        if code.co_filename not in ours or event not in ("call", "return"):
            return
        if code.co_name == "<module>" and ours[code.co_filename] not in COMMANDS:
            importing += 1 if event == "call" else -1
        elif event == "call" and not importing:
            called.add((code.co_filename, code.co_name, code.co_firstlineno))
        if code.co_name == "one_update":
            sys.setprofile(None)
            sizes = {(file, *f[:2]): f[2] for file in {c[0] for c in called} for f in functions(Path(file))}
            read = [n for n in ours.values() if n in sys.modules or n == Path(script).stem]
            walk = {"imported": read, "called": sorted({ours[c[0]] for c in called if c in sizes})}
            print("\n" + json.dumps(walk | {"lines": sum(sizes.get(c, 0) for c in called)}), flush=True)
            os._exit(0)

    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(ROOT))
    sys.setprofile(note)
    runpy.run_path(str(ROOT / script), run_name="__main__")


def main() -> None:
    known = modules()
    count = lambda paths: sum(map(lines, paths))  # noqa: E731
    walk = walked("train_clm.py", "--model", "nano", "--data", "nanomed/demo/general.txt")
    longest = sorted(((n, name, f) for name, p in known.items() for f, _, n in functions(p)), reverse=True)
    print(f"the lesson (README's reading order)      {count(lesson()):6,} lines in {len(lesson())} files")
    print(f"package and scripts                      {count(known.values()):6,} lines in {len(known)} files")
    rooms = {name: [p for m, p in known.items() if room(m) == name] for name in WALK}
    for name, paths in rooms.items():
        print(f"  {name:38} {count(paths):6,} lines in {len(paths)} files")
    read, called = ([known[name] for name in walk[which]] for which in ("imported", "called"))
    print(f"make adapt to its first update, imported {count(read):6,} lines in {len(read)} files")
    print(f"  files of which it calls a function     {count(called):6,} lines in {len(called)} files")
    print(f"  the functions that it calls            {walk['lines']:6,} lines")
    print("longest functions  " + ", ".join(f"{name}.{f} {n}" for n, name, f in longest[:5]))
    files = sorted(((lines(p), name) for name, p in known.items()), reverse=True)
    print("longest files      " + ", ".join(f"{name} {n}" for n, name in files[:5]))
    print(f"imports against the walk: {len(against_the_walk())}; circles: {len(circles())}")


if __name__ == "__main__":
    trace(sys.argv[2]) if sys.argv[1:2] == ["--trace"] else main()
