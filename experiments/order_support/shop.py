"""The shop: its orders, its policies, and what changes with time. First step of making the data.

What is a fact of one order or of a policy stands in a record, and in a record alone. How the shop answers is in
letters.py.
"""

import dataclasses
import random

CARRIERS = ("Northline", "Swift Parcel", "Bluebird Post", "Harbour Freight", "Milestone Express")
ITEMS = (
    *("wool blanket", "rain jacket", "camping stove", "hiking backpack", "sleeping bag", "headlamp", "folding chair"),
    *("water filter", "fleece pullover", "trekking poles", "dry bag", "travel mug", "picnic basket", "sun hat"),
)
MONTHS = ("March", "April", "May", "June", "July", "August")
PACKING, SHIPPED, DELIVERED, DELAYED = "packing", "shipped", "delivered", "delayed"
STATES = (PACKING, SHIPPED, DELIVERED, DELAYED)

_FIRST_NUMBER, _NUMBERS = 10_000, 90_000
_NEXT = {PACKING: SHIPPED, SHIPPED: DELIVERED, DELAYED: DELIVERED}  # what becomes of an order; one delivered stays


@dataclasses.dataclass(frozen=True)
class Order:
    """An order as the shop's records have it.

    Attributes:
        number: "FW-48213"; no two orders share one.
        item: what was bought.
        state: one of STATES.
        carrier: who brings it.
        tracking: the carrier's number.
        date: of leaving, of expected arrival, or of arrival, by the state.
        return_until: last day of returning it; None: it cannot be returned.
    """

    number: str
    item: str
    state: str
    carrier: str
    tracking: str
    date: str
    return_until: str | None


@dataclasses.dataclass(frozen=True)
class Policy:
    """A rule of the shop.

    Attributes:
        topic: what it is about.
        text: of the record, with `{value}`.
        now: the value.
        later: the value after the shop has changed its mind.
    """

    topic: str
    text: str
    now: str
    later: str


POLICIES = (
    Policy("shipping", "Standard shipping is free for orders of {value} and more.", "60 euros", "85 euros"),
    Policy("gift cards", "Gift cards of the shop can be used for {value}.", "three years", "five years"),
    Policy("warranty", "Tents and stoves of the shop have a warranty of {value}.", "ten years", "six years"),
    Policy("repairs", "The repair workshop takes {value} for a repair.", "two weeks", "four weeks"),
    Policy("opening hours", "The care line is open {value}.", "from 9 to 17", "from 8 to 20"),
    Policy("price match", "The shop matches a lower price within {value} of the purchase.", "14 days", "30 days"),
)


def invent_orders(count: int, seed: int) -> list[Order]:
    """Orders with different numbers.

    Raises:
        ValueError: there are not so many numbers.
    """
    if not 0 <= count <= _NUMBERS:
        raise ValueError(f"orders must be between 0 and {_NUMBERS}, got {count}")
    chance = random.Random(f"orders/{seed}")
    numbers = chance.sample(range(_FIRST_NUMBER, _FIRST_NUMBER + _NUMBERS), count)
    return [_order(f"FW-{number}", chance) for number in numbers]


def later(order: Order, seed: int) -> Order:
    """The order some days on: packed ones have left, others have arrived; what was returnable stays so."""
    if order.state not in _NEXT:
        return order
    chance = random.Random(f"later/{seed}/{order.number}")
    date = order.date
    while date == order.date:
        date = _date(chance)
    return dataclasses.replace(order, state=_NEXT[order.state], date=date)


def order_record(order: Order) -> str:
    """The record of an order, as retrieval finds it."""
    states = {
        PACKING: f"being packed, leaves the warehouse on {order.date} with {order.carrier}",
        SHIPPED: f"shipped with {order.carrier}, tracking number {order.tracking}, expected on {order.date}",
        DELIVERED: f"delivered by {order.carrier} on {order.date}",
        DELAYED: f"delayed at {order.carrier}, tracking number {order.tracking}, was expected on {order.date}",
    }
    returns = f"accepted until {order.return_until}" if order.return_until else "not accepted, final sale"
    return f"Order {order.number}: {order.item}. State: {states[order.state]}. Return: {returns}."


def policy_record(policy: Policy, *, changed: bool) -> str:
    """The record of a policy, before or after its change."""
    return f"Policy on {policy.topic}: " + policy.text.format(value=policy.later if changed else policy.now)


def _order(number: str, chance: random.Random) -> Order:
    carrier = chance.choice(CARRIERS)
    return Order(
        number=number,
        item=chance.choice(ITEMS),
        state=chance.choice(STATES),
        carrier=carrier,
        tracking=f"{carrier[:2].upper()}{chance.randrange(10**6, 10**7)}",
        date=_date(chance),
        return_until=_date(chance) if chance.random() < 0.7 else None,
    )


def _date(chance: random.Random) -> str:
    return f"{chance.randint(1, 30)} {chance.choice(MONTHS)}"
