"""Made-up private values: each is put together from parts at the time of the test, none belongs to anybody."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable

from stdnum.es import dni
from stdnum.iso7064 import mod_11_2
from stdnum.it import codicefiscale

ALNUM = string.ascii_letters + string.digits
FULL_WIDTH = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)})
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
WORDS = ("kettle", "harbor", "violet", "anchor", "pepper", "candle", "ribbon", "walnut", "meadow", "saddle")


class Values:
    """A source of values by name, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def make(self, name: str) -> str:
        """A value of a kind, such as `email`, `phone.de` or `key.aws`."""
        kind, _, of = name.partition(".")
        return str(getattr(self, f"_{kind}")(of))

    def _digits(self, number: int, first: str = "23456789") -> str:
        return self.dice.choice(first) + "".join(self.dice.choices(string.digits, k=number - 1))

    def _email(self, of: str) -> str:
        people = {
            "": ["ana.reis", "t_okafor", "j-lindqvist", "m.b.weber7"],
            "de": ["jürgen.groß", "s.köhler"],
            "ru": ["иван.петров", "мария"],
            "fr": ["hélène.dubois", "p.lefèvre"],
        }
        domains = {
            "": ["example.org", "post.example.com", "mail-example.net"],
            "de": ["münchner-post.de", "example.de"],
            "ru": ["почта-пример.рф"],
            "fr": ["exemple.fr"],
        }
        made = f"{self.dice.choice(people.get(of, people['']))}{self.dice.randint(2, 99) if not of else ''}@"
        made += self.dice.choice(domains.get(of, domains[""]))
        if of == "plus":
            made = made.replace("@", "+news@")
        return made.translate(FULL_WIDTH) if of == "wide" else made.replace("@", "\\u0040") if of == "json" else made

    def _phone(self, of: str) -> str:
        d = self._digits
        made = {
            "us": lambda: (
                f"({self.dice.choice(['212', '415', '617'])}) {self.dice.choice(['736', '943', '278'])}-{d(4)}"
            ),
            "gb": lambda: f"07700 9{d(5)}",
            "de": lambda: f"0171 {d(7)}",
            "intde": lambda: f"+49 30 {d(4)} {d(4)}",
            "fr": lambda: "06 " + " ".join(d(2) for _ in range(4)),
            "es": lambda: f"6{d(2)} {d(2)} {d(2)} {d(2)}",
            "it": lambda: f"347 {d(3)} {d(4)}",
            "pt": lambda: f"91{d(1)} {d(3)} {d(3)}",
            "br": lambda: f"(11) 9{d(4)}-{d(4)}",
            "ru": lambda: f"8 (91{self.dice.choice('1567')}) {d(3)}-{d(2)}-{d(2)}",
            "intru": lambda: f"+7 91{self.dice.choice('1567')} {d(3)} {d(2)} {d(2)}",
            "zh": lambda: f"13{self.dice.choice('5678')}{d(8)}",
            "zhgrouped": lambda: f"13{self.dice.choice('5678')} {d(4)} {d(4)}",
            "ja": lambda: f"090-{d(4)}-{d(4)}",
            "wide": lambda: f"080-{d(4)}-{d(4)}".translate(FULL_WIDTH),
            "th": lambda: f"081-{d(3)}-{d(4)}",
            "ko": lambda: f"010-{d(4)}-{d(4)}",
            "intpt": lambda: f"+351 91{d(1)} {d(3)} {d(3)}",
            "intl": lambda: f"+{self.dice.choice(['33 6', '34 6', '39 34', '44 77'])}{d(2)} {d(3)} {d(3)}",
            "arab": lambda: f"+971 50 {d(3)} {d(4)}".translate(ARABIC),
            "bare": lambda: f"06{d(8)}",
        }
        return made[of or "intl"]()

    def _card(self, of: str) -> str:
        start, length = {"amex": ("37", 15), "mc": ("53", 16)}.get(of, ("4", 16))
        body = start + "".join(self.dice.choices(string.digits, k=length - len(start) - 1))
        total = sum(sum(divmod(int(c) * (2 - n % 2), 10)) for n, c in enumerate(reversed(body)))
        number = body + str(-total % 10)
        if of in ("amex", "plain"):
            return number
        parted = [number[n : n + 4] for n in range(0, 16, 4)]
        made = ("-" if of == "dash" else " ").join(parted)
        return made.translate(FULL_WIDTH) if of == "wide" else made

    def _iban(self, of: str) -> str:
        body = {
            "de": self._digits(18),
            "fr": self._digits(23),
            "es": self._digits(20),
            "pt": self._digits(21),
            "it": "X" + self._digits(22),
            "nl": "ABNA" + self._digits(10),
            "gb": "NWBK" + self._digits(14),
        }[of or "de"]
        land = (of or "de").upper()
        checked = 98 - int("".join(str(int(c, 36)) for c in body + land + "00")) % 97
        whole = f"{land}{checked:02d}{body}"
        return whole if of == "nl" else " ".join(whole[n : n + 4] for n in range(0, len(whole), 4))

    def _id(self, of: str) -> str:
        made: dict[str, Callable[[], str]] = {
            "us": lambda: f"{self.dice.randint(100, 665)}-{self.dice.randint(10, 99)}-{self.dice.randint(1000, 9999)}",
            "cn": self._ric,
            "es": lambda: self._dni(),
            "br": self._cpf,
            "it": self._fiscal,
            "fr": self._nir,
            "kr": lambda: f"900{self.dice.randint(101, 131)}-1{self._digits(6)}",
            "passport": lambda: f"C{self._digits(8)}",
            "ru": lambda: f"{self._digits(4)} {self._digits(6)}",
            "nino": lambda: f"AB {self._digits(2)} {self._digits(2)} {self._digits(2)} C",
        }
        return made[of]()

    def _dni(self) -> str:
        number = self._digits(8)
        return number + str(dni.calc_check_digit(number))

    def _ric(self) -> str:
        body = f"1101051987{self.dice.randint(10, 12)}{self.dice.randint(10, 28)}{self.dice.randint(100, 999)}"
        return str(body + mod_11_2.calc_check_digit(body))

    def _cpf(self) -> str:
        numbers = [int(c) for c in self._digits(9)]
        for _ in range(2):
            rest = sum((len(numbers) + 1 - n) * c for n, c in enumerate(numbers)) % 11
            numbers.append(0 if rest < 2 else 11 - rest)
        text = "".join(map(str, numbers))
        return f"{text[:3]}.{text[3:6]}.{text[6:9]}-{text[9:]}"

    def _fiscal(self) -> str:
        body = f"RSSMRA{self.dice.randint(50, 99)}A{self.dice.randint(10, 28)}H501"
        return str(body + codicefiscale.calc_check_digit(body))

    def _nir(self) -> str:
        body = f"2{self.dice.randint(50, 99)}0{self.dice.randint(1, 9)}75{self._digits(3)}{self._digits(3)}"
        whole = f"{body}{97 - int(body) % 97:02d}"
        return f"{whole[0]} {whole[1:3]} {whole[3:5]} {whole[5:7]} {whole[7:10]} {whole[10:13]} {whole[13:]}"

    def _ip(self, of: str) -> str:
        if of == "6":
            parts = [self.dice.randint(4096, 65535) for _ in range(3)]
            return "2001:db8:{:x}:{:x}::{:x}".format(*parts)
        parts = [self.dice.choice([85, 93, 151, 203]), *(self.dice.randint(10, 250) for _ in range(3))]
        return ".".join(map(str, parts))

    def _random(self, of: str) -> str:
        """`of` letters and digits, some of each."""
        number = int(of or 32)
        return "q7Z" + "".join(self.dice.choices(ALNUM, k=number - 3))

    def _hex(self, of: str) -> str:
        return "".join(self.dice.choices("0123456789abcdef", k=int(of or 32)))

    def _base64(self, of: str) -> str:
        return base64.b64encode(self.dice.randbytes(int(of or 30))).decode()

    def _password(self, of: str) -> str:
        word, other = self.dice.sample(WORDS, 2)
        return {
            "": f"{word}{self.dice.randint(10, 99)}!{other}",
            "words": f"{word}-{other}-{self.dice.choice(WORDS)}",
            "short": f"{word[:4]}{self.dice.randint(100, 999)}",
            "signs": f"{word.title()}#{other}",
            "word": f"{word}{other}",
        }[of]

    def _key(self, of: str) -> str:
        """A key as a service writes it, put together from parts, so that no scanner takes this file for one."""
        r = self._random
        return {
            "openai": lambda: "sk" + "-proj-" + r("44"),
            "anthropic": lambda: "sk" + "-ant-api03-" + r("60"),
            "aws": lambda: "AK" + "IA" + "".join(self.dice.choices(string.ascii_uppercase + "234567", k=16)),
            "github": lambda: "gh" + "p_" + r("36"),
            "app": lambda: "gh" + "s_" + r("36"),
            "fine": lambda: "github" + "_pat_" + r("60"),
            "gitlab": lambda: "gl" + "pat-" + r("20"),
            "stripe": lambda: "sk" + "_live_" + r("32"),
            "restricted": lambda: "rk" + "_live_" + r("32"),
            "google": lambda: "AI" + "za" + r("35"),
            "hf": lambda: "h" + "f_" + r("34"),
            "npm": lambda: "np" + "m_" + r("36"),
            "slack": lambda: "xo" + "xb-" + self._digits(11) + "-" + self._digits(12) + "-" + r("24"),
            "sendgrid": lambda: "S" + "G." + r("22") + "." + r("43"),
            "digitalocean": lambda: "do" + "p_v1_" + self._hex("64"),
            "telegram": lambda: self._digits(9) + ":" + "AA" + r("33"),
            "groq": lambda: "gs" + "k_" + r("48"),
            "jwt": lambda: "ey" + "J" + r("30") + "." + "ey" + "J" + r("50") + "." + r("43"),
            "pypi": lambda: "py" + "pi-AgEIcHlwaS5vcmc" + r("80"),
            "hook": lambda: "T" + r("9").upper() + "/B" + r("9").upper() + "/" + r("24"),
            "pem": lambda: (
                "-----BEGIN " + "RSA PRIVATE KEY-----\n" + self._base64("96") + "\n-----END " + "RSA PRIVATE KEY-----"
            ),
        }[of]()
