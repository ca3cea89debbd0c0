"""How customers ask, and how the house answers: wording, escalation, closing. Second step of making the data.

The house's rules, which fine-tuning is to teach: every answer begins with OPENING and ends with CLOSING; what went
wrong (an order that is delayed, an item that arrived damaged) is handed to people, with ESCALATION and without a date.
"""

import dataclasses
import random

from experiments.order_support.shop import DELAYED, DELIVERED, PACKING, SHIPPED, Order, Policy

OPENING = "Thank you for writing to Fernwood."
CLOSING = "Kind regards, Juniper from Fernwood"
ESCALATION = "I have handed this to our care team, who will call you within one working day."

WHERE, RETURN, DAMAGED, POLICY = "where", "return", "damaged", "policy"
KINDS = (WHERE, RETURN, DAMAGED, POLICY)

# Wordings of questions; those of held-out rows are never trained.
QUESTIONS = {
    WHERE: (
        "Where is my order {number}?",
        "Hi, I ordered something from you (order {number}) and wonder when it gets here.",
        "Can you tell me the status of {number} please?",
        "I am still waiting for {number}. What is going on?",
        "When will order {number} arrive?",
    ),
    RETURN: (
        "Can I return my order {number}?",
        "I do not like what I got in {number}. Is it possible to send it back?",
        "Until when can order {number} be returned?",
        "I changed my mind about {number}, can you take it back?",
    ),
    DAMAGED: (
        "My order {number} arrived broken.",
        "The {item} from order {number} has a hole in it.",
        "I just opened the parcel of {number} and the {item} is damaged. What now?",
        "There is a crack in the {item} you sent me ({number}).",
    ),
}
HELD_OUT_QUESTIONS = {
    WHERE: ("Any news about order {number}?", "My parcel for {number} is not here yet, could you check?"),
    RETURN: ("The thing from order {number} does not suit me. Do you take returns?", "How do I give back {number}?"),
    DAMAGED: ("Unfortunately the {item} in my order {number} came torn.", "{number}: the {item} does not work at all!"),
}
POLICY_QUESTIONS = {
    "shipping": ("From which amount on is shipping free?", "Do I have to pay for shipping?"),
    "gift cards": ("How long can I use a gift card?", "Does my gift card expire?"),
    "warranty": ("How long is the warranty on a tent?", "Do your stoves come with a warranty?"),
    "repairs": ("How long does a repair take?", "I would like my jacket repaired, how long will I wait?"),
    "opening hours": ("When is the care line open?", "At what hours can I call you?"),
    "price match": ("I saw it cheaper elsewhere, do you match the price?", "Until when do you match a lower price?"),
}
HELD_OUT_POLICY_QUESTIONS = {
    "shipping": ("What must I spend to get free shipping?", "When is standard shipping free of charge?"),
    "gift cards": ("I found one of your old gift cards, is it still good?", "For how long are gift cards valid?"),
    "warranty": ("What warranty do tents have?", "Is my stove still under warranty?"),
    "repairs": ("If I send something to the repair workshop, when is it done?", "Are repairs quick?"),
    "opening hours": ("What are the opening hours of the care line?", "Is the care line open in the evening?"),
    "price match": ("Another shop has a lower price now. Is there a price match?", "How does your price match work?"),
}


@dataclasses.dataclass(frozen=True)
class Letter:
    """A question and what a right answer to it is.

    Attributes:
        kind: one of KINDS.
        question: of the customer.
        answer: of the house.
        facts: what the answer must say, word for word but for case; of records alone.
        escalated: whether it must be handed to people.
    """

    kind: str
    question: str
    answer: str
    facts: tuple[str, ...]
    escalated: bool


def about_order(order: Order, kind: str, chance: random.Random, *, held_out: bool) -> Letter:
    """A letter about an order, of the kinds WHERE, RETURN and DAMAGED."""
    wording = chance.choice((HELD_OUT_QUESTIONS if held_out else QUESTIONS)[kind])
    body, facts, escalated = _answer(order, kind)
    return Letter(kind, wording.format(number=order.number, item=order.item), signed(body, escalated), facts, escalated)


def about_policy(policy: Policy, question: str, *, changed: bool) -> Letter:
    """A letter with a question about a policy, before or after its change."""
    value = policy.later if changed else policy.now
    return Letter(POLICY, question, signed(policy.text.format(value=value), False), (value,), False)


def signed(body: str, escalated: bool) -> str:
    """An answer in the form of the house."""
    return " ".join((OPENING, body, *([ESCALATION] if escalated else []), CLOSING))


def _answer(order: Order, kind: str) -> tuple[str, tuple[str, ...], bool]:
    """What is said of an order, the facts in it, and whether it is escalated."""
    number, item = order.number, order.item
    if kind == DAMAGED:
        return f"I am sorry about the {item} from order {number}.", (), True
    if kind == RETURN:
        if order.return_until is None:
            return f"The {item} from order {number} was a final sale and cannot be returned.", ("final sale",), False
        return (
            f"You can return the {item} from order {number} until {order.return_until}.",
            (order.return_until,),
            False,
        )
    date, carrier = order.date, order.carrier
    if order.state == DELAYED:
        return f"I am sorry that order {number} is held up at {carrier}.", (carrier,), True
    body, facts = {
        PACKING: (f"Order {number} is being packed and leaves us on {date}.", ("pack", date)),
        SHIPPED: (
            f"Order {number} is on its way with {carrier}, tracking number {order.tracking}, to arrive on {date}.",
            (carrier, order.tracking, date),
        ),
        DELIVERED: (f"Order {number} was delivered by {carrier} on {date}.", ("delivered", carrier, date)),
    }[order.state]
    return body, facts, False
