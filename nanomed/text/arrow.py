"""Rows that Arrow keeps: Parquet files, data sets that were saved, and those on the Hub; and the names that
such a data set has for numbers."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nanomed import network
from nanomed.errors import UserError
from nanomed.text.lines import note_once
from nanomed.text.names import find, is_saved, split_how


def parquet_rows(path: Path) -> Iterator:
    import pyarrow.parquet  # datasets brings it

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path}: truncated, corrupt or not Parquet ({e})") from e
    except (ValueError, OverflowError) as e:  # of a text, or a time
        raise UserError(f"{path}: a value that cannot be read ({e})") from e


def saved_rows(path: Path, split: str | None):
    """Of a Dataset that was saved, or of a DatasetDict's split: `train`, or the only one, if none is
    named."""
    datasets = _datasets()
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as e:  # datasets raises a dozen kinds
        raise UserError(f"{path}: not what Dataset.save_to_disk writes ({type(e).__name__}: {e})") from e
    found = found.with_format(None)  # what it was saved in: tensors, frames, some of its columns
    if isinstance(found, datasets.Dataset):
        if split:
            raise UserError(f"{path}: a data set without splits; leave out {split!r}")
        return found
    split, there = split or (next(iter(found)) if len(found) == 1 else "train"), ", ".join(found)
    if split not in found:
        raise UserError(f"{path}#{split}: no such split; there is: {there}")
    note_once(f"{path}: its split {split!r} (of {there})")
    return found[split]


def _datasets():
    network.check_endpoint()
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails is said in one line
    return datasets


def hub_rows(name: str):
    repo, config, split, *rest = [*name.removeprefix("hub:").split(":"), None, None]
    if not repo or any(rest):
        raise UserError(f"{name}: must be hub:REPO[:CONFIG[:SPLIT]]")
    if Path(repo).is_file():
        raise UserError(f"{name}: {repo} is a file here; leave out hub:")
    datasets = _datasets()
    # where nothing answers, datasets would retry for half a minute
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE or not network.online()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # another host is told nothing of what is read
    try:
        load = partial(datasets.load_dataset, repo, config, split=split or "train")
        return network.watched(load, network.folder_of("datasets", repo), all_the_time=False)
    except Exception as e:  # datasets raises a dozen kinds, all about what was asked for
        raise network.explain(repo, e, "file") from e


def class_names(name: str, field: str) -> list[str] | None:
    """The names that `datasets` has for the numbers 0, 1, ... (ClassLabel) in the first of the dotted paths
    `a.b,c` that there is: of hub:REPO, of a Parquet file that it wrote, or of a data set that it saved. None
    where the numbers have no names."""
    if (features := _features(name)) is None:
        return None
    import datasets

    for path in [field] if field in features else field.split(","):
        feature = features
        for key in [path] if path in features else path.split("."):
            feature = feature.get(key) if isinstance(feature, dict) else getattr(feature, "feature", None)
        while (inner := getattr(feature, "feature", None)) is not None:  # of a list
            feature = inner
        if feature is not None:
            return feature.names if isinstance(feature, datasets.ClassLabel) else None
    return None


def _features(name: str):
    """The kinds of the columns, where datasets knows them."""
    if name.startswith("hub:"):
        return hub_rows(name).features
    if is_saved(Path(split_how(name)[0])):
        source = find(name)
        return saved_rows(source.path, source.how).features
    if not name.lower().endswith(".parquet") or not Path(name).is_file():
        return None
    import datasets
    import pyarrow.parquet

    try:
        return datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(name))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError):  # said by who reads its rows
        return None
