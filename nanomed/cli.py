"""What the scripts share on the command line: their parser, presets from a recipe, and how they end. Their
flags: flags.py."""

import argparse
import difflib
import os
import re
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from nanomed.errors import STOPS, Interrupted, UserError, is_out_of_memory
from nanomed.files import read_toml
from nanomed.memory import reuse_memory
from nanomed.outputs import release
from nanomed.streams import CONTROLS, open_streams
from nanomed.threads import share_cores

LONGEST_LINE = 400  # characters


def summary(doc: str | None) -> str:
    """The first paragraph of a docstring, which `python -OO` leaves out, on one line."""
    return " ".join((doc or "").partition("\n\n")[0].split())


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are values: none where the help says it in words, or where it is None, off or
    empty."""

    def _get_help_string(self, action):
        empty = action.default in (None, (), [], "") or action.default is False
        if empty or "(default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)

    def _format_usage(self, usage, actions, groups, prefix):
        """What must be given; all else is listed below it."""
        groups = [group for group in groups if group.required]
        either = [action for group in groups for action in group._group_actions]
        needed = [a for a in actions if a.required or a in either or not a.option_strings]
        said = super()._format_usage(usage, needed, groups, prefix)
        return said if len(actions) - len(needed) < 2 else f"{said.rstrip()} [flags]\n\n"


class Parser(argparse.ArgumentParser):
    """One line for a wrong flag, defaults in --help, no abbreviations."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=Help, allow_abbrev=False, **kwargs)

    def error(self, message):
        raise UserError(f"{message}{self._nearest(message)} (--help lists the flags)")

    def _print_message(self, message, file=None):
        print(message, end="", file=file or sys.stderr)  # argparse would not say that it cannot

    def _nearest(self, message: str) -> str:
        """For a flag that nobody knows: the known one that is most like it. argparse complains of what is
        missing first."""
        if not message.startswith(("unrecognized", "the following arguments are required")):
            return ""
        flags, command = list(self._option_string_actions), "".join(sys.argv[1:2])
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and command in action.choices:
                flags += action.choices[command]._option_string_actions
        said = message.split() if message.startswith("unrecognized") else sys.argv[1:]
        for flag in (word.partition("=")[0] for word in said if re.match(r"--\w", word)):
            near = nearest(flag, flags)
            if flag not in flags and near:
                return f"; {flag}: did you mean {near}?"
        return ""


# What Hugging Face's Trainer, trl and peft call a setting.
ELSEWHERE = {"learning_rate": "lr", "num_train_epochs": "epochs", "max_grad_norm": "grad_clip",
             "per_device_train_batch_size": "batch_size", "gradient_accumulation_steps": "grad_accum",
             "gradient_checkpointing": "grad_checkpoint", "max_length": "context", "block_size": "context",
             "r": "lora_r", "target_modules": "lora_targets", "eval_steps": "eval_every",
             "output_dir": "out", "train_dataset": "data", "eval_dataset": "val_data"}  # fmt: skip


def nearest(name: str, known: list[str]) -> str | None:
    """Of flags or settings, the one that is probably meant by a name that is none."""
    meant = ELSEWHERE.get(name.strip("-").replace("-", "_"), name)
    return next(iter(difflib.get_close_matches(meant, known, 1)), None)


class Several(argparse.Action):
    """A flag that takes several values, may be given several times, and once given replaces a recipe's."""

    def __call__(self, parser, namespace, values, option_string=None):
        if not all(map(str.strip, values)):
            raise argparse.ArgumentError(self, "an empty name; name a file, or what else it takes")
        given = namespace.__dict__.setdefault("_given", set())
        before = getattr(namespace, self.dest) if self.dest in given else []
        given.add(self.dest)
        setattr(namespace, self.dest, [*before, *values])


def parse(parser: argparse.ArgumentParser, phase: str, words=None, given=None) -> argparse.Namespace:
    """Parse the command line, or other words; a recipe given with --config presets flags through its section
    `[phase]`. given: {setting: value}, from Python, which win over the recipe's.

    Raises UserError for an unknown key of that section, or a value that the flag would not take."""
    pre = Parser(add_help=False)
    pre.add_argument("--config")
    path = pre.parse_known_args(words)[0].config
    if path is not None:
        recipe = read_toml(Path(path), "--config ")
        if not isinstance(recipe.get(phase), dict):
            raise UserError(f"{path}: no section [{phase}]; there are: {', '.join(recipe) or 'none'}")
        preset(parser, recipe[phase], f"{path} [{phase}]")
    if given:
        preset(parser, given, f"nanomed.{phase}", "_")
    args = parser.parse_args(words)
    args.__dict__.pop("_given", None)
    return args


def preset(parser, section: dict, where: str, between: str = "-") -> None:
    """A recipe's section as a parser's defaults, or settings given from Python, whose names have `_` between
    words."""
    flags = {a.dest: a for a in parser._actions if a.option_strings and a.dest not in ("help", "config")}
    for key, value in section.items():
        action = flags.get(key.replace("-", "_"))
        if action is None:
            near = nearest(key, [f.replace("_", between) for f in flags])
            meant = f"; did you mean {near!r}?" if near else ""
            raise UserError(f"{where}: unknown key {key!r}{meant}")
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{where}: {key} must be true or false")
        elif isinstance(action, Several):
            if value in ([], ""):
                raise UserError(f"{where}: {key} is empty")
            value = [str(v) for v in (value if isinstance(value, list) else [value])]
        elif isinstance(value, list | dict | bool):
            raise UserError(f"{where}: {key} must be one value")
        else:
            try:
                value = parser._get_value(action, str(value))
                parser._check_value(action, value)
            except argparse.ArgumentError as e:
                raise UserError(f"{where}: {key}: {e.message}") from e
        action.required = False
        parser.set_defaults(**{action.dest: value})


def execute(main, name: str | None = None) -> None:
    """Call a script's main() and exit: 0 done (or the status that main returns, where that is an answer), 2
    what the user can mend (one line), 128 + n after a signal, 1 a bug."""
    for sig in STOPS:
        signal.signal(sig, _interrupt)
    open_streams()
    prepare()
    name = name or Path(sys.argv[0]).name
    try:
        code = main() or 0
        sys.stdout.flush()  # now, while it can still be said that it cannot be written
    except BaseException as e:
        _ignore_signals()
        code = _explain(e, name)
    _ignore_signals()  # what comes now would interrupt nothing but the end
    release()
    sys.exit(code)


def prepare() -> None:
    """This process, before PyTorch is loaded."""
    _find_home()
    reuse_memory()
    share_cores(writes=sys.argv[1:2] == ["generate"])


def _find_home() -> None:
    """huggingface_hub keeps its cache there; a user who is but a number, in a container, may have none."""
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"nanomed-{os.getuid()}" / "huggingface"
        os.environ.setdefault("HF_HOME", str(home))


def _said(kind, error, trace, before=sys.excepthook):
    """Ctrl-C before execute(), while modules are imported, gets one line and no traceback; but how a program
    that calls nanomed ends is left to that program."""
    if kind is KeyboardInterrupt and "nanomed.python" not in sys.modules:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
    else:
        before(kind, error, trace)


sys.excepthook = _said


def _interrupt(signum, frame):
    """End in order; but at once while modules are imported: an exception in the midst of a library's start
    can abort it."""
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
            os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt if signum == signal.SIGINT else Interrupted(signum)


def _ignore_signals() -> None:
    while True:
        try:
            for sig in STOPS:
                signal.signal(sig, signal.SIG_IGN)
            return
        except (Interrupted, KeyboardInterrupt):  # one more, just now
            continue


def _one_line(text: str) -> str:
    """Of bearable length, and without what would give orders to a terminal: names and values in it may come
    from anywhere."""
    text = CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    if len(text) <= LONGEST_LINE:
        return text
    return f"{text[: LONGEST_LINE * 2 // 3]} ... {text[-LONGEST_LINE // 3 :]}"


def _explain(error: BaseException, name: str) -> int:
    """Say on standard error how it ended; the exit status."""
    match error:
        case SystemExit():  # --help
            return error.code
        case UserError():
            print(f"{name}: {_one_line(str(error))}", file=sys.stderr)
            return 2
        case Interrupted():
            print(f"{name}: {error}", file=sys.stderr)
            return 128 + error.signum
        case KeyboardInterrupt():
            print(f"{name}: interrupted", file=sys.stderr)
            return 130
        case OSError():  # no permission, a file where a directory should be, a full disk
            said = f"{error.filename}: " if error.filename else ""
            print(f"{name}: {_one_line(f'{said}{error.strerror or error}')}", file=sys.stderr)
            return 2
        case _ if is_out_of_memory(error):
            mend = "lower --batch-size or --context, where --help has them"
            print(f"{name}: out of memory; {mend}", file=sys.stderr)
            return 2
    traceback.print_exception(error)
    return 1
