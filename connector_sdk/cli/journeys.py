"""What the users of the generated traffic do: each journey is a generator of steps, drawn from one dice. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final, Self

import msgspec

__all__ = ["JOURNEYS", "Journey", "Person", "Scene", "Step"]

_FIRST: Final = ("Ada", "Ben", "Chloe", "Dmitri", "Elif", "Femi", "Grace", "Hiro", "Ines", "Jonas", "Kamala", "Luis",
                 "Maya", "Noah", "Oksana", "Priya", "Quentin", "Rosa", "Sven", "Tala", "Umar", "Vera", "Wei")  # fmt: skip
_LAST: Final = ("Abara", "Berg", "Castro", "Dubois", "Evans", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Kaur",
                "Lopez", "Moreau", "Nowak", "Okafor", "Patel", "Quinn", "Rossi", "Silva", "Tanaka", "Ueda")  # fmt: skip
_PRODUCTS: Final = (
    ("Standing desk, oak", "desks", 489), ("Monitor arm", "accessories", 119), ("Task chair, mesh", "chairs", 329),
    ("Desk lamp, dimmable", "lighting", 64), ("Cable tray", "accessories", 24), ("Footrest", "accessories", 45),
    ("Filing cabinet", "storage", 210), ("Whiteboard, 120 cm", "boards", 155), ("Acoustic panel", "sound", 89),
    ("Bookshelf, birch", "storage", 275), ("Laptop stand", "accessories", 38), ("Meeting table", "desks", 740),
)  # fmt: skip
_QUESTIONS: Final = (
    "refund",
    "change delivery address",
    "invoice copy",
    "coupon not accepted",
    "missing parts",
    "add a seat",
)
_CARD_ERRORS: Final = ("card declined by the bank", "security code missing", "payment provider did not answer in time")


class Person(msgspec.Struct, frozen=True):
    """A user, at the domain that is reserved for examples."""

    name: str
    email: str
    user_id: str

    @classmethod
    def draw(cls, dice: random.Random) -> Self:
        """One of some ten thousand users; the same one may come again."""
        first, last, number = dice.choice(_FIRST), dice.choice(_LAST), dice.randrange(1, 20)
        return cls(
            f"{first} {last}", f"{first}.{last}{number}@example.com".lower(), f"usr_{first}{last}{number}".lower()
        )


class Step(msgspec.Struct, frozen=True):
    """One action: what it is, `after` how many seconds of thinking it comes, and how long it `lasts`."""

    type: str
    title: str
    description: str
    page: str  #: canonical path
    path: str = ""  #: the path as it was, "" when it is the canonical one
    after: float = 0.0
    lasts: float = 0.0


class Scene:
    """What a journey draws from: the dice, who it is about, and short ways to say a step."""

    def __init__(self, dice: random.Random, person: Person) -> None:
        self.dice = dice
        self.person = person

    def page(self, title: str, page: str, path: str = "") -> Step:
        """A page was opened and read."""
        return Step("pageview", title, f"Opened {title}", page, path, self._pause(1, 6), self._pause(2, 25))

    def click(self, title: str, description: str, page: str, path: str = "") -> Step:
        """Something was clicked."""
        return Step("click", title, description, page, path, self._pause(1, 8))

    def input(self, title: str, description: str, page: str, path: str = "") -> Step:
        """A field was filled in; what was typed is not said."""
        return Step("input", title, description, page, path, self._pause(1, 4), self._pause(2, 15))

    def search(self, term: str, found: int) -> Step:
        """The shop was searched."""
        text = f'Searched for "{term}": {found} results' if found else f'Searched for "{term}" and found nothing'
        return Step("search", "Search", text, "/search", f"/search?q={term.replace(' ', '+')}", self._pause(2, 8), 0.4)

    def error(self, title: str, description: str, page: str, path: str = "") -> Step:
        """The user met an error message."""
        return Step("error", title, description, page, path, self._pause(0.3, 2))

    def product(self) -> tuple[str, str, int, int]:
        """A product: name, category, price, number."""
        name, category, price = self.dice.choice(_PRODUCTS)
        return name, category, price, 1000 + [product[0] for product in _PRODUCTS].index(name)

    def _pause(self, shortest: float, longest: float) -> float:
        return round(self.dice.uniform(shortest, longest), 3)


class Journey(msgspec.Struct, frozen=True):
    """One way to use the shop: how often it is taken, its steps, and what its summary says."""

    name: str
    weight: int
    signed_in: bool
    play: Callable[[Scene], Iterator[Step]]
    outcome: str

    def summary(self, person: Person, actions: int, seconds: float) -> str:
        """The prose that replaces the session's actions."""
        who = person.name if self.signed_in else "An unknown visitor"
        return f"{who} {self.outcome} ({actions} actions in {int(seconds) // 60} min {int(seconds) % 60} s)."


def _browse(scene: Scene) -> Iterator[Step]:
    yield scene.page("Home", "/")
    for _ in range(scene.dice.randint(1, 4)):
        name, category, price, number = scene.product()
        yield scene.page(f"{category.title()} category", f"/category/{category}")
        yield scene.page(name, "/product/:id", f"/product/{number}")
        if scene.dice.random() < 0.4:
            yield scene.click(
                "Photos", f"Looked through the photos of {name} ({price} EUR)", "/product/:id", f"/product/{number}"
            )


def _choose(scene: Scene) -> Iterator[Step]:
    yield scene.page("Home", "/")
    name, _, price, number = scene.product()
    yield scene.search(name.partition(",")[0].lower(), scene.dice.randint(1, 12))
    yield scene.page(name, "/product/:id", f"/product/{number}")
    yield scene.click("Add to cart", f"Added {name} to the cart ({price} EUR)", "/product/:id", f"/product/{number}")
    yield scene.page("Cart", "/cart")


def _buy(scene: Scene) -> Iterator[Step]:
    yield from _choose(scene)
    yield scene.click("Checkout", "Went to checkout", "/cart")
    yield scene.input("Delivery address", "Filled in the delivery address", "/checkout/address")
    yield scene.input("Payment", "Filled in the card number", "/checkout/payment")
    order = scene.dice.randrange(20_000, 90_000)
    yield scene.click("Pay now", "Paid for the order", "/checkout/payment")
    yield scene.page("Thank you", "/orders/:id/thanks", f"/orders/{order}/thanks")


def _fail_to_pay(scene: Scene) -> Iterator[Step]:
    yield from _choose(scene)
    yield scene.click("Checkout", "Went to checkout", "/cart")
    reason = scene.dice.choice(_CARD_ERRORS)
    for _ in range(scene.dice.randint(2, 4)):
        yield scene.input("Payment", "Filled in the card number", "/checkout/payment")
        yield scene.click("Pay now", "Clicked Pay now", "/checkout/payment")
        yield scene.error("Checkout error", f"Checkout error: {reason}", "/checkout/payment")
    yield scene.page("Help: payment problems", "/help/payment")


def _use_coupon(scene: Scene) -> Iterator[Step]:
    yield from _choose(scene)
    yield scene.input("Coupon", "Entered a coupon code", "/cart")
    yield scene.error("Coupon error", "Error: this coupon has expired", "/cart")
    yield scene.search("coupon", 0)
    yield scene.click("Remove", "Emptied the cart", "/cart")


def _ask_for_help(scene: Scene) -> Iterator[Step]:
    question = scene.dice.choice(_QUESTIONS)
    yield scene.page("Help center", "/help")
    yield scene.search(question, scene.dice.randint(0, 3))
    yield scene.page("Contact us", "/help/contact")
    yield scene.input("Message", f"Wrote to support about: {question}", "/help/contact")
    ticket = scene.dice.randrange(3_000, 9_000)
    yield scene.click("Send", "Opened a support ticket", "/help/tickets/:id", f"/help/tickets/{ticket}")


def _manage_account(scene: Scene) -> Iterator[Step]:
    yield scene.page("Sign in", "/login")
    if scene.dice.random() < 0.3:
        yield scene.error("Sign-in error", "Error: wrong password", "/login")
    yield scene.input("Password", "Signed in", "/login")
    order = scene.dice.randrange(20_000, 90_000)
    yield scene.page("Your orders", "/account/orders")
    yield scene.page(f"Order {order}", "/account/orders/:id", f"/account/orders/{order}")
    yield scene.click("Invoice", "Downloaded the invoice as PDF", "/account/orders/:id", f"/account/orders/{order}")
    if scene.dice.random() < 0.5:
        yield scene.input("Team", "Invited a colleague to the team account", "/account/team")


JOURNEYS: Final = (
    Journey("browse", 30, False, _browse, "browsed the catalogue and left without buying"),
    Journey("buy", 22, True, _buy, "searched for a product, bought it and reached the thank-you page"),
    Journey("abandon", 16, False, _choose, "put a product into the cart and abandoned it there"),
    Journey("fail to pay", 12, True, _fail_to_pay, "met a checkout error when paying, tried again and gave up"),
    Journey("coupon", 6, True, _use_coupon, "had a coupon rejected and emptied the cart"),
    Journey("help", 8, True, _ask_for_help, "searched the help center and opened a support ticket"),
    Journey("account", 14, True, _manage_account, "signed in and downloaded an invoice"),
)
