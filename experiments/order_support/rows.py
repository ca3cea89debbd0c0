"""Writes the data: records that retrieval searches, rows to train on, held-out rows, and both after the world changed.

`records.jsonl` has a record of every order and policy; `records_later.jsonl` the same when orders have moved on and
policies have changed. `train.jsonl` is trained on, `validation.jsonl` measured during a run, `held_out.jsonl` at the
end: its orders and wordings are not among the others. `later.jsonl` has those held-out questions whose right answer has
changed. All of it is a pure function of the numbers of rows and the seed.
"""

import random
from pathlib import Path

from experiments.order_support.letters import (
    DAMAGED,
    HELD_OUT_POLICY_QUESTIONS,
    POLICY,
    POLICY_QUESTIONS,
    RETURN,
    WHERE,
    Letter,
    about_order,
    about_policy,
)
from experiments.order_support.shop import (
    POLICIES,
    Order,
    Policy,
    invent_orders,
    later,
    order_record,
    policy_record,
)
from experiments.rows import HELD_OUT, chat_row, write_rows

RECORDS, RECORDS_LATER = "records.jsonl", "records_later.jsonl"
TRAIN, VALIDATION, LATER = "train.jsonl", "validation.jsonl", "later.jsonl"

HELD_OUT_POLICIES = [(policy, question) for policy in POLICIES for question in HELD_OUT_POLICY_QUESTIONS[policy.topic]]

# Of ten letters that are trained so many are of a kind. The held-out ones about policies are all that there are, once.
_KINDS = (*[WHERE] * 5, *[RETURN] * 2, DAMAGED, *[POLICY] * 2)

Row = dict[str, object]


def write_data(directory: Path, train_rows: int, held_out_rows: int, seed: int) -> None:
    """Writes all files into a local directory, each whole; what is there is written anew.

    Raises:
        ValueError: the numbers of rows are below 1, or above what there are order numbers for.
    """
    if min(train_rows, held_out_rows) < 1:
        raise ValueError(f"numbers of rows must be at least 1, got {train_rows=} and {held_out_rows=}")
    validation_rows = max(2, train_rows // 25)
    counts = {HELD_OUT: held_out_rows, TRAIN: train_rows, VALIDATION: validation_rows}
    orders = iter(invent_orders(sum(counts.values()), seed))
    records: dict[str, list[Row]] = {RECORDS: _policies(changed=False), RECORDS_LATER: _policies(changed=True)}
    rows: dict[str, list[Row]] = {LATER: []}
    for name, count in counts.items():
        rows[name] = []
        for number in range(count):
            order = next(orders)
            moved = later(order, seed)
            records[RECORDS].append(_record(order.number, order_record(order)))
            records[RECORDS_LATER].append(_record(order.number, order_record(moved)))
            row = _row(order, f"{name.split('.')[0]}/{number}", seed, changed=False)
            rows[name].append(row)
            row_later = _row(moved, row["id"], seed, changed=True)
            if name == HELD_OUT and row_later["messages"] != row["messages"]:
                rows[LATER].append(row_later)
    write_rows(directory, {**records, **rows})


def _row(order: Order, name: str, seed: int, *, changed: bool) -> Row:
    """A row about an order, or about a policy in its place; the question depends on name and seed alone."""
    chance = random.Random(f"letters/{seed}/{name}")
    file, number = name.split("/")
    held_out, of_orders = file == "held_out", [kind for kind in _KINDS if kind != POLICY]
    if held_out and int(number) < len(HELD_OUT_POLICIES):
        kind = POLICY
    else:  # there are few questions about policies: they would be the same in training and validation
        kind = chance.choice(_KINDS if file == "train" else of_orders)
    if kind != POLICY:
        return _as_row(about_order(order, kind, chance, held_out=held_out), name, order_record(order))
    policy, question = HELD_OUT_POLICIES[int(number)] if held_out else _trained_policy(chance)
    return _as_row(about_policy(policy, question, changed=changed), name, policy_record(policy, changed=changed))


def _trained_policy(chance: random.Random) -> tuple[Policy, str]:
    policy = chance.choice(POLICIES)
    return policy, chance.choice(POLICY_QUESTIONS[policy.topic])


def _as_row(letter: Letter, name: str, record: str) -> Row:
    columns = {"kind": letter.kind, "facts": list(letter.facts), "escalated": letter.escalated, "record": record}
    return chat_row(letter.question, letter.answer, id=name, **columns)


def _policies(*, changed: bool) -> list[Row]:
    return [_record(policy.topic, policy_record(policy, changed=changed)) for policy in POLICIES]


def _record(name: str, text: str) -> Row:
    return {"id": name, "text": text}
