"""How rows are read: the options of a data set, and the error of everything that cannot be read.

Used by files/ (paths -> rows) and formats/ (rows -> examples), which records.py joins.
"""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence

import ml_collections

AUTO = "auto"
NO_SPLIT = "none"  # as `held_out_split`: held-out rows that have no splits, where the training rows have some
FLAGS = "--config.data.reading."  # what the flags of these options begin with, in messages
_HELD_OUT_SPLIT = f"{FLAGS}held_out_split"
ON_BAD_ROW = ("error", "drop")
LABELS = ("unanimous", "majority", "adjudicated")
TIES = ("error", "first")
PAIRS, CHOSEN = PREFERENCES = ("pairs", "chosen")
TEXT_ENDS = {"": None, "none": False, "eos": True}  # whether the end-of-sequence token follows; None: nobody said


class RecordError(ValueError):
    """A file or a row of it that cannot be read. The message says where, what was expected and what to do."""


class NoFormatError(RecordError):
    """The columns of a row fit no format, or only under other names."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the rows of a data set are read; `config.data.reading`.

    Attributes:
        format: a name of FORMATS (formats/), or "auto": found from the names of the columns.
        container: a name of CONTAINERS (files/), or "auto": found from the file's suffix, then from its content.
        subset: configuration of a data set of the hub.
        split: of a data set that has several ("train", "train[:1000]").
        revision: of a data set of the hub: branch, tag or commit.
        streaming: read a data set of the hub row by row over the network, without a copy on this machine.
        columns: renames, "new=old"; old may lead into objects, "text=data.text", and be empty for the one column of a
            CSV file whose header has no name for it, "id=".
        id_column: column that names the row instead of file and line.
        weight_column: column with the weight of a row.
        group_column: column with the slice of the data a row belongs to.
        prompt_template: text of the user's turn of a table, with "{column}" in it.
        answer_template: text of the assistant's turn of a table.
        system: system message of conversations that have none.
        ignore: keys of messages, and of their parts and calls, and columns of images and sound that are left out.
        label: whose label counts where several people annotated a row, one of LABELS.
        ties: under "majority", what becomes of a row that has none: one of TIES.
        adjudicator: under "adjudicated", the annotator whose label counts; empty: the one marked as ground truth.
        preference: "pairs": two answers to one prompt stay a pair; "chosen": the chosen one is to be imitated.
        text_end: what rows of text and segments end with, one of TEXT_ENDS: "none": their own last token; "eos": the
            tokenizer's end-of-sequence token; empty: as "none", and the checks ask whether that is meant.
        on_bad_row: "error" stops at the first row that cannot be read, "drop" lists it among the dropped rows.
        prompts_only: rows are to be answered, so an answer may be missing. Not an option of a config.
        flags: what the flags that set these options begin with, for advice; empty: there are none. No option either.
        split_flag: the flag that says which split these rows are, for advice; that of held-out rows is another. No
            option either.
    """

    format: str = AUTO
    container: str = AUTO
    subset: str = ""
    split: str = ""
    revision: str = ""
    streaming: bool = False
    columns: tuple[str, ...] = ()
    id_column: str = ""
    weight_column: str = ""
    group_column: str = ""
    prompt_template: str = ""
    answer_template: str = ""
    system: str = ""
    ignore: tuple[str, ...] = ()
    label: str = "unanimous"
    ties: str = "error"
    adjudicator: str = ""
    preference: str = PAIRS
    text_end: str = ""
    on_bad_row: str = "error"
    prompts_only: bool = False
    flags: str = FLAGS
    split_flag: str = f"{FLAGS}split"


DEFAULT = Reading()
_NO_OPTIONS = ("prompts_only", "flags", "split_flag")
OPTIONS = tuple(field.name for field in dataclasses.fields(Reading) if field.name not in _NO_OPTIONS)


def reading_of(config: ml_collections.ConfigDict, flags: str = FLAGS) -> Reading:
    """The options of `config.data.reading`.

    Args:
        config: the section of the config.
        flags: what the flags of this section begin with.
    """
    options = {name: config[name] for name in OPTIONS}
    for name in ("columns", "ignore"):
        options[name] = tuple(options[name])
    return Reading(**options, flags=flags)


def held_out_reading_of(reading: Reading, held_out_split: str) -> Reading:
    """How held-out rows are read: like the training rows (`reading`), but for their split."""
    split = "" if held_out_split == NO_SPLIT else held_out_split or reading.split
    return dataclasses.replace(reading, split=split, split_flag=_HELD_OUT_SPLIT)


def flags_of_source(name: str) -> str:
    """What the flags begin with that say how the rows of a source are read; of a mixture, unless the name is empty."""
    return f"--config.data.mixture.{name}.reading." if name else FLAGS


def leave_split(reading: Reading) -> str:
    """What to do with `split` where rows have no splits."""
    if reading.split_flag == _HELD_OUT_SPLIT:  # where it is empty, that of the training rows takes its place
        return f"Give {FLAGS}held_out_split={NO_SPLIT}"
    return f"Leave {reading.split_flag} empty"


def given(options: Mapping[str, str | Sequence[str]]) -> str:
    """The flags that set options of `config.data.reading`, as one types them in a shell."""
    return " ".join(
        f"{FLAGS}{name}={shlex.quote(value if isinstance(value, str) else tuple_text(value))}"
        for name, value in options.items()
    )


def tuple_text(values: Sequence[str]) -> str:
    """A tuple of texts as the value of a flag: ("strip_whitespace",)."""
    return f"({''.join(f'{json.dumps(value, ensure_ascii=False)},' for value in values)})"


@contextlib.contextmanager
def under_flags_of(reading: Reading) -> Iterator[None]:
    """Errors name the flags that set the options of this data set, where those are not of `config.data.reading`."""
    try:
        yield
    except ValueError as error:
        if reading.flags in (FLAGS, ""):
            raise
        raise type(error)(str(error).replace(FLAGS, reading.flags)) from error
