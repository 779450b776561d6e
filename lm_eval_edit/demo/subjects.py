"""People, companies and cities that do not exist.

Every subject is two invented words, and no two subjects share the second one: ROME takes its key at the last token of
the subject, and distinct last tokens make keys that interfere less.
"""

from __future__ import annotations

import random
from functools import lru_cache

SEED = 20240104
PEOPLE, COMPANIES, CITIES = 180, 60, 60

_ONSETS = ("Bel", "Cor", "Dar", "Fen", "Gol", "Hal", "Jor", "Kes", "Lum", "Mor", "Nar", "Pel", "Rud", "Sel", "Tor",
           "Vel")  # fmt: skip
_CODAS = ("bek", "din", "fox", "gan", "hut", "jik", "kam", "lod", "mup", "nesk", "pral", "quin", "rast", "sov", "tum",
          "vik", "wend", "yar", "zeb", "zol", "dask", "frim")  # fmt: skip
GIVEN_NAMES = (
    "Abo", "Adi", "Beno", "Bira", "Cala", "Demi", "Dova", "Edu", "Elko", "Fara", "Gilo", "Hela", "Ibe", "Ilva", "Jano",
    "Kela", "Kimo", "Lado", "Lisu", "Mako", "Miru", "Nabi", "Nelo", "Ofra", "Olmo", "Pavi", "Pila", "Quena", "Rilo",
    "Runa", "Sabo", "Seka", "Tavi", "Tilo", "Ula", "Vadi", "Wilu", "Yano", "Zita", "Zuko",
)  # fmt: skip
COMPANY_WORDS = ("Alpha", "Bright", "Crown", "Delta", "Eagle", "Falcon", "Grand", "Harbor", "Iron", "Jade")
CITY_WORDS = ("North", "South", "East", "West", "Upper", "Lower", "Old", "New", "Port", "Mount")
COUNTRIES = (
    "Ambria", "Borduna", "Cadoria", "Drevland", "Estovia", "Fenmark", "Gorania", "Hestland", "Ilmaria", "Jarnia",
    "Kovaria", "Lethonia",
)  # fmt: skip


@lru_cache(maxsize=1)
def subjects() -> dict[str, tuple[str, ...]]:
    """All subjects by kind (`person`, `company`, `city`); every name is `<first word> <unique second word>`."""
    rng = random.Random(SEED)
    seconds = [onset + coda for onset in _ONSETS for coda in _CODAS]
    rng.shuffle(seconds)
    unused = iter(seconds)

    def names(first_words: tuple[str, ...], count: int) -> tuple[str, ...]:
        return tuple(f"{first_words[i % len(first_words)]} {next(unused)}" for i in range(count))

    return {
        "person": names(GIVEN_NAMES, PEOPLE),
        "company": names(COMPANY_WORDS, COMPANIES),
        "city": names(CITY_WORDS, CITIES),
    }
