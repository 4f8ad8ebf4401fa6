"""The command line ``svdjax sample|train|convert|...``, and the one place that reports mistakes."""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

import tyro

from svdjax.compilation import keep_compiled
from svdjax.errors import UserError

# Command: its options and the module that holds them beside ``run(options)``; a module is imported when needed.
COMMANDS = {
    "sample": ("svdjax.sampling.command", "Sample", "make videos of photos or texts"),
    "train": ("svdjax.training.run", None, "train the models of a configuration file"),
    "export": ("svdjax.training.export", None, "write the model of one of a run's checkpoints as a file"),
    "precompute": ("svdjax.training.precompute", None, "encode the training clips once, into a latent cache"),
    "curate": ("svdjax.curation.command", None, "turn raw videos into a training set: cut, annotate, filter"),
    "plan": ("svdjax.planning.command", None, "compile training or sampling for a TPU slice and say what it needs"),
    "convert": ("svdjax.conversion.convert", "Convert", "turn a checkpoint or a LoRA into another format"),
    "record": ("svdjax.conversion.record", "Record", "run the PyTorch reference and store what it computes"),
    "compare": ("svdjax.conversion.compare", "Compare", "measure a checkpoint against such a record"),
    "report": ("svdjax.training.report", "Report", "make one page of the curves, samples and settings of a run"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 if it succeeded, 2 after a mistake of the user, with one line that names it."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: svdjax COMMAND [OPTIONS]   (svdjax COMMAND --help lists the options)\n")
        print("\n".join(f"  {name:12}{text}" for name, (_, _, text) in COMMANDS.items()))
        sys.exit(0)
    sys.exit(guard(lambda: _dispatch(name, rest)))


def _dispatch(name: str, argv: Sequence[str]) -> object:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"svdjax {name}: no such command; {hint}")
    module_name, options, _ = COMMANDS[name]
    module = importlib.import_module(module_name)
    keep_compiled()
    if options is None:  # the configuration file decides what the options are
        return module.main(argv)
    return module.run(tyro.cli(getattr(module, options), args=argv, prog=f"svdjax {name}"))


_MAKE_SMALLER = (
    "when sampling, give smaller --height and --width, fewer --frames, --per-device 1 or --chunk 1; when training, "
    "smaller batches (in more parts: accumulate), more remat or more fsdp"
)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def guard(command: Callable[[], object]) -> int:
    """Call a command and turn its outcome into an exit code; its own one if it returns an integer."""
    try:
        result = command()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # JAX's own is one; naming it would import JAX for every --help
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: too little memory on the device: {_MAKE_SMALLER} ({_first_line(error)})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
