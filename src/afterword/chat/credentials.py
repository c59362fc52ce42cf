"""Finds secrets by their form and by the names beside them: service keys, passwords, tokens, private keys.

Separates secrets from names, types, references and placeholders. Key forms are detect-secrets' rules plus `_FORMS`.
Reads folded text (`chat.folding`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

Span = tuple[int, int]

_PLUGINS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("aws", "AWSKeyDetector", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws", "AWS")),
    ("azure_storage_key", "AzureStorageKeyDetector", ("AccountKey=",)),
    ("cloudant", "CloudantDetector", ("cloudant", "CLOUDANT")),
    ("discord", "DiscordBotTokenDetector", ("M", "N", "O")),
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("gitlab_token", "GitLabTokenDetector", ("gl", "GR1348941")),
    ("ibm_cloud_iam", "IbmCloudIamDetector", ("ibm", "IBM", "iam_", "IAM_")),
    ("ibm_cos_hmac", "IbmCosHmacDetector", ("cos_", "COS_", "cos-")),
    ("mailchimp", "MailchimpDetector", ("-us",)),
    ("npm", "NpmDetector", ("_authToken",)),
    ("openai", "OpenAIDetector", ("T3BlbkFJ",)),
    ("pypi_token", "PypiTokenDetector", ("pypi-",)),
    ("sendgrid", "SendGridDetector", ("SG.",)),
    ("slack", "SlackDetector", ("xox", "hooks.slack")),
    ("softlayer", "SoftlayerDetector", ("softlayer", "SOFTLAYER")),
    ("square_oauth", "SquareOAuthDetector", ("sq0csp",)),
    ("stripe", "StripeDetector", ("k_live_",)),
    ("telegram_token", "TelegramBotTokenDetector", (":A",)),
    ("twilio", "TwilioKeyDetector", ("AC", "SK")),
)
"""Detectors of detect-secrets whose form alone makes a secret sure, each with what a text holds that it matches. Its
detectors of entropy, of all assignments, of addresses and of Artifactory's passwords find hashes and ordinary code. Its
detector of JSON web tokens takes time with the square of a text's length; `_FORMS` has them."""
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,}|[rs]k_(?:live|test|prod)_[A-Za-z0-9]{16,}|pk-[A-Za-z0-9_-]{20,}|gsk_\w{20,}"
    r"|xai-\w{20,}|r8_\w{20,}"
    r"|gh[opusr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{18,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}"
    r"|AIza[\w-]{30,}|GOCSPX-[\w-]{20,}"
    r"|ya29\.[\w-]{20,}|1//0[\w-]{30,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|do[opr]_v1_[a-f0-9]{40,}|shp(?:at|ss|ca|pa)_\w{20,}"
    r"|whsec_[\w+/=]{16,}|sq0(?:atp|csp)-[\w-]{20,}|dckr_pat_[\w-]{20,}|lin_api_\w{20,}|figd_[\w-]{20,}"
    r"|PMAK-[\w-]{20,}|NRAK-\w{20,}|tskey-[\w-]{16,}"
    r"|hv[sb]\.[\w-]{20,}|LTAI[A-Za-z0-9]{12,}|AKID[A-Za-z0-9]{20,}|key-[a-f0-9]{32}|pypi-[\w-]{40,}"
    r"|rubygems_[a-f0-9]{40,}|sntrys_[\w=+/]{20,}"
    r"|eyJ[\w=-]{10,999}\.[\w=-]{10,}(?:\.[\w-]{5,})?|A(?:KI|SI)A[A-Z0-9]{16}|AGE-SECRET-KEY-1[0-9A-Z]{50,}|nvapi-[\w-]{20,}"
    r"|ATATT3[\w=-]{20,}|secret_[A-Za-z0-9]{40,}"
    r"|EAA[A-Za-z0-9]{40,}|[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,45}|dapi[a-f0-9]{32}"
    r"|pat[A-Za-z0-9]{14}\.[a-f0-9]{40,}|ntn_\w{30,}|CFPAT-[\w-]{30,}"
    r"|phc_\w{30,}|sbp_[a-f0-9]{40}|vercel_\w{20,}"
    r")"
)
"""Keys of services as they write them today, of which the library knows none or an older form."""
_PREFIX = re.compile(r"[A-Za-z][-_]|\.[\w-]{6}\.|AIza|eyJ|A[KS]IA|LTAI|AKID|1//0|ya29|hv[sb]\.|SG\.|EAA|dapi|pat|xox")
_RANDOM = re.compile(r"(?<![A-Za-z0-9_-])[a-z]{2,8}(?:_[a-z]{2,8})?_(?P<v>[A-Za-z0-9]{24,})(?![A-Za-z0-9_])")
"""A short name of a service and a long random part."""
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[\w+/=\s:,.()-]{0,8000}?-----END "
    r"(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"|[A-Za-z0-9+/=\s]*)"
    r"|PuTTY-User-Key-File-\d:[\w+/=\s:,.-]{0,8000}?Private-MAC:[ \w]*"
)
_ENCODED = re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/]{50}[A-Za-z0-9+/=\n ]*")
"""A block that begins with `-----BEGIN`, in base64."""
_WEAK = r"(?:pass(?:word|wd|phrase|code|wort)?|passwd|pwd|pw|kennwort|contrase[ñn]a|senha|mot_?de_?passe)"
"""Names of what people choose: any word may be one."""
_STRONG = (
    r"(?:secret|token|api[_.\-]?key|apikey|access[_.\-]?key|auth[_.\-]?key|private[_.\-]?key|secret[_.\-]?key"
    r"|signing[_.\-]?key|encryption[_.\-]?key"
    r"|account[_.\-]?key|master[_.\-]?key|subscription[_.\-]?key|license[_.\-]?key|shared[_.\-]?key"
    r"|service[_.\-]?key|deploy[_.\-]?key|client[_.\-]?key"
    r"|db[_.\-]?key|app[_.\-]?key|tls\.key|credentials?|auth(?:orization)?|bearer|jwt|dsn|"
    r"(?<=[a-zA-Z][_\-])key|[a-z]Key|session[_.\-]?id|sid|cookie)"
)
"""Names of what machines make: only what looks random is one."""
_ENDING = r"(?:[_\-]?(?:value|prod|production|dev|staging|stage|live|test|old|new|backup|main|base64|b64|[0-9]{1,2}))?"
_NAME = rf"(?P<name>[$A-Za-z0-9_.\-]{{0,48}}?(?:(?P<weak>{_WEAK})|(?P<strong>{_STRONG})){_ENDING})"
_LITERAL = r"(?P<q>[\"'`])(?P<quoted>[^\n\"'`]{1,512})(?P=q)"
_ASSIGNED = re.compile(
    rf"(?i){_NAME}(?![A-Za-z0-9_])"
    r"(?:[\"'`\])}]{0,3})(?:\s{0,3}:\s{0,2}[A-Za-z_][\w.\[\]| ]{0,40}?(?=\s{0,3}=(?!=)))?"
    r"(?:(?P<op>\s{0,8}(?:=>|:=|===?|!==?|<-|\|\||\?\?|[=:])|[,(]|>)\s{0,8})"
    r"(?:@|\b[bru]?f?(?=[\"'`]))?"
    rf"(?:(?:[A-Za-z_.]{{1,30}}\()?{_LITERAL}|(?P<bare>[^\s\"'`,;<>(){{}}\[\]|]{{4,512}})(?P<after>[(\[{{]?))"
)
"""A name, an operator and a value: assignments, JSON, YAML, .env, defaults of getenv, properties, queries of URLs."""
_SPACED_NAME = re.compile(
    r"(?im)(?:^[ \t]*(?:ENV|ARG|setenv|setx|set -g?x)|\b(?:config(?:ure)?|secrets?)[ :](?:set|put|add))\s+"
    rf"{_NAME}\s+[\"']?(?P<v>[^\s\"'=]{{4,512}})"
)
_FLAG = re.compile(
    rf"(?i)(?<![\w-])--?(?P<name>[a-z-]{{0,24}}(?:(?P<weak>{_WEAK})|(?P<strong>token|secret|api-?key|access-?key"
    rf"|secret-?key|auth|key)))(?:\s+|=)"
    r"(?P<q>[\"']?)(?P<v>[^\s\"'`;|&<>()]{4,512})(?P=q)"
)
_USER = re.compile(
    r"(?:\bcurl\b|\bhttp\b|\bwget\b|\bhttps\b)[^\n]{0,200}?\s(?:-u|--user|-a|--auth"
    r"|--proxy-user)[ =]?[\"']?[^\s:\"']{0,64}:(?P<v>[^\s\"']{3,256})"
    r"|\bcurl\b[^\n]{0,200}?\s-u\s+[\"']?(?P<k>[A-Za-z0-9_-]{16,128}):?(?=[\s\"']|$)"
    r"|\b(?:mysql|mysqldump|mysqladmin|mariadb)\b[^\n]{0,120}?\s-p(?P<m>[^\s\"'-][^\s\"']{3,128})"
    r"|\bsshpass\s+-p\s*[\"']?(?P<s>[^\s\"']{3,128})|\bredis-cli\b[^\n]{0,80}?\s-a\s+[\"']?(?P<r>[^\s\"']{4,256})"
    r"|\b(?:docker|podman|helm registry|az|oc)\b[^\n]{0,20}\blogin\b[^\n]{0,120}?\s-p[ =]?[\"']?(?P<d>[^\s\"']{4,512})"
    r"|\b(?:mongosh?|mongo(?:dump|restore|export|import)|cqlsh|clickhouse-client|sqlcmd)\b[^\n]{0,160}?\s-[pP]\s*[\"']?"
    r"(?P<n>[^\s\"'-][^\s\"']{3,128})"
    r"|\bhtpasswd\s+-\w*b\w*\s+\S+\s+\S+\s+[\"']?(?P<t>[^\s\"']{4,128})|\bssh-keygen\b[^\n]{0,120}?\s-[NP]\s*[\"']"
    r"(?P<y>[^\s\"']{4,128})"
    r"|\bsnmp\w+\b[^\n]{0,120}?\s-[AX]\s+[\"']?(?P<a>[^\s\"']{6,128})|\becho\s+[\"']?"
    r"(?P<e>[^\s\"'$|]{4,128})[\"']?\s*\|\s*(?:sudo\s+-S|docker login|passwd)"
    r"|\b(?:zip|unzip|7za?|rar|unrar|qpdf)\b[^\n]{0,120}?\s-(?:[pP]\s|p)[\"']?(?P<z>[^\s\"'-][^\s\"']{3,128})"
    r"|\s-pass(?:in|out)?\s+pass:(?P<o>[^\s\"']{4,128})"
    r"|\blogin\s+(?:--?[\w-]+\s+){0,3}(?P<l>(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,128})(?![\w.@-])"
    r"|\bConvertTo-SecureString\s+[\"'](?P<c>[^\"'\n]{4,128})"
)
_CALL = re.compile(
    r"(?:\.login|(?<![a-z])auth\s{0,2}=\s{0,2}|BasicAuth|basic_auth|\.authenticate|PasswordAuthentication|\.connect)"
    r"\(\s{0,4}[^\s,()]{1,80},\s{0,4}[\"'](?P<v>[^\"'\s]{4,128})[\"']"
    r"|(?:\.getConnection|PDO)\(\s{0,4}[\"'][^\"'\n]{1,200}[\"'],\s{0,4}[\"'][^\"'\n]{1,64}[\"'],\s{0,4}[\"']"
    r"(?P<w>[^\"'\s]{4,128})[\"']"
    r"|(?:jwt\.\w{4,6}|createHmac|hmac\.new)\([^,()\n]{1,80},\s{0,4}b?[\"'](?P<x>[^\"'\s]{8,256})[\"']"
    r"|Fernet\(b?[\"'](?P<y>[^\"'\s]{16,64})[\"']"
)
_LINE = re.compile(
    r"(?im)^[ \t]*(?:bindpw|rootpw|requirepass|masterauth|password|passwd|secret|(?:enable|username \S+) (?:secret"
    r"|password))\s+(?:\d\s)?(?P<v>[^\s\"'=:<>(){}]{4,128})[ \t]*$"
)
_NETRC = re.compile(
    r"(?i)\b(?:machine\s+\S+|default)\s+login\s+\S+\s+password\s+(?P<v>[^\s\"'<>{}]{3,256})|\blogin\s+\S+\s+password\s+"
    r"(?P<w>[^\s\"'<>{}]{3,256})"
)
_PGPASS = re.compile(r"(?m)^[\w.*-]{1,64}:(?:\d{2,5}|\*):[\w*-]{1,64}:[\w*.-]{1,64}:(?P<v>[^\s:\"']{4,128})$")
_HTPASSWD = re.compile(r"(?m)^[\w.@-]{1,64}:(?P<v>\$(?:apr1|2[aby]|1|5|6|y)\$[\w./$]{16,})")
_HEADER = re.compile(
    r"(?i)\b(?:(?:proxy-)?authorization|auth)[\"']?\s{0,2}[:=,]\s{0,2}[\"'`]?(?:bearer|basic|token|apikey|api-key"
    r"|key|digest|negotiate|splunk|bot)\s{1,3}"
    r"(?P<v>[A-Za-z0-9+/=_.~:-]{6,2048})|\bbearer\s{1,2}(?P<w>[A-Za-z0-9_.~+/-]{16,2048}=*)|\bbasic\s"
    r"(?P<x>[A-Za-z0-9+/]{14,}={0,2})(?![A-Za-z0-9+/])"
)
_URL = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{1,20}://(?:[^\s:/@\"'<>]{0,64}:(?P<v>[^\s/@\"'<>]{2,256})|"
    r"(?P<w>[A-Za-z0-9_-]{16,256}))@[\w\[.-]"
)
_QUERY = re.compile(
    r"[?&;](?:[\w.-]{0,24}(?:token|secret|password|passwd|pwd|api_?key|apikey|access_?key|auth|sig|signature"
    r"|credential)|key|code|sid|session)=(?P<v>[^\s&#\"'<>;]{6,2048})",
    re.IGNORECASE,
)
_WEBHOOK = re.compile(
    r"(?:hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/\d+/"
    r"|outlook\.office\.com/webhook/|api\.telegram\.org/bot)(?P<v>[\w/:.@-]{16,256})"
)
_XML = re.compile(
    rf"(?i)(?:<(?P<name>[\w:.-]{{0,32}}(?:(?P<weak>{_WEAK})|(?P<strong>{_STRONG})))>(?P<v>[^<>\n]{{3,512}})</)"
    rf"|(?:\b(?:name|key|id)\s{{0,2}}[:=]\s{{0,2}}[\"']?[\w.:-]{{0,40}}(?:(?P<weak2>{_WEAK})|"
    rf"(?P<strong2>{_STRONG})){_ENDING}[\"']?,?\s{{1,24}}(?:-\s)?[\"']?value[\"']?\s{{0,2}}[:=]\s{{0,2}}"
    r"(?P<q>[\"']?)(?P<v2>[^\s\"'<>]{3,512})(?P=q))"
)
_SQL = re.compile(
    r"(?i)\b(?:identified\s+by|(?:with\s+)?(?:encrypted\s+)?password)\s+(?P<q>['\"])(?P<v>[^'\"\n]{3,128})(?P=q)"
)
_SAID = re.compile(
    r"(?i)(?:\b(?P<weak>password|passwort|kennwort|passphrase|passcode|pin|mot de passe|contraseña|clave|senha"
    r"|parola d'ordine|пароль|пин-?код)(?!\w)"
    r"|\b(?:token|api[ -]key|secret key|access key|schlüssel|clé api|key|secret|ключ)(?!\w)"
    r"|(?P<machine>密钥|金鑰|令牌|秘钥|トークン|(?:API|秘密|アクセス)キー|โทเค็น|토큰|API 키)"
    r"|(?P<cjk>密码|密碼|口令|パスワード|暗証番号|合言葉|รหัสผ่าน|비밀번호|암호"
    r"|كلمة المرور|كلمة السر|סיסמה))"
    r"(?(cjk)[^\nA-Za-z0-9\"'`「“]{0,6}|(?(machine)[^\nA-Za-z0-9\"'`「“]{0,6}|(?:\s[^\W\d]{1,12}"
    r"(?=[\s:=])){0,4}\s{0,2}[:=]?\s{1,2}))"
    r"[\"'`「“]?(?P<v>(?<![A-Za-z0-9])[!#$%&*+./0-9:=?@A-Z^_a-z|~-]{4,64}+)(?!\()"
)
_TOLD = re.compile(r"(?i)(?:\b(?:is|ist|lautet|est|es|è|é|будет|war|was)|[:=—])\s*[\"'`「“]?\Z")
_SIGNS = re.compile(
    "pass|pwd|pw|secret|token|key|auth|credential|bearer|jwt|dsn|cookie|sid|session|sig|kennwort|contrase|senha|mot"
)
"""What every name that `_ASSIGNED` knows holds, in small letters."""
_NAME_BEFORE = re.compile(r"[$A-Za-z0-9_.\-]{0,48}\Z")
_LABELS = (
    "password", "passwort", "kennwort", "passphrase", "passcode", "pin", "mot de passe", "contraseña", "clave", "senha",
    "parola d'ordine", "пароль", "пин", "token", "key", "secret", "ключ", "金鑰", "秘钥", "キー", "토큰", "키",
    "schlüssel",
    "clé api", "密码", "密碼", "口令", "密钥", "令牌", "パスワード", "暗証番号", "トークン", "合言葉", "รหัสผ่าน",
    "โทเค็น",
    "비밀번호", "암호",
    "كلمة المرور", "كلمة السر", "סיסמה",
)  # fmt: skip
_TOOLS = (
    "mongo",
    "cqlsh",
    "clickhouse",
    "sqlcmd",
    "htpasswd",
    "ssh-keygen",
    "snmp",
    "sudo -s",
    "zip",
    "7z",
    "rar",
    "qpdf",
    "openssl",
    "curl",
    "http ",
    "https ",
    "wget",
    "mysql",
    "mariadb",
    "sshpass",
    "redis-cli",
    "login",
    "convertto",
)
_PLACEHOLDER = re.compile(
    r"(?i)^(?:[\^~<>=]{0,2}v?\d+\.\d+(?:\.\S{1,16})?|.*(?:\.{3}|…)|.{0,24}(?:your|change.?me|change.?this|replace"
    r"|placeholder|example|insert|redacted|dummy|sample"
    r"|my[_-]?(?:secret|token|pass|api|key)|put[_-]|here\b|todo|fixme)"
    r".{0,40}|<.*|.*>|\$.*|%.*|.*%|\{.*|.*\}|\*+|x{3,}.*|\.{2,}.*|-+|_+|0+|1+|…+|\[[A-Z]+\].*|.*\[(?:SECRET|EMAIL"
    r"|PHONE|CARD|IBAN|SSN|IP|ID)\].*"
    r"|none|null|nil|true|false|undefined|yes|no|on|off|string|str|bytes?|int|integer|number|bool|boolean|any"
    r"|object|text|hidden|required|optional|default|empty"
    r"|pass(?:word|wd|phrase|code)?s?|secrets?|tokens?|keys?|auth|username|user|users|name|email|login|value"
    r"|values|test|tests|testing|admin|root|guest|foo|bar|baz|foobar"
    r"|bearer|basic|digest|jwt|oauth2?|apikey|api[_-]?key|type|field|input|label|hash|id|self|this|invalid|wrong"
    r"|missing|expired|forgot\w*|reset\w*|confirm\w*|show\w*|new|old|current"
    r"|process\.env.*|os\.environ.*|env\..*|config\..*|settings\..*|secrets\..*|vars\..*|var\..*|vault.*|ref\+.*"
    r"|!ref.*|sha\d+.*|md5.*|utf-?8|base64|hmac.*|hs\d+|rs\d+|cl100k\w*|gpt.*|bert.*)$"
)
_REFERENCE = re.compile(r"^[A-Za-z_$][\w$]*(?:(?:\.|->|::|\?\.)[A-Za-z_$][\w$]*)+[);,]*$")
_IDENTIFIER = re.compile(r"^[A-Za-z_$][A-Za-z_$]*[0-9]{0,2}$")
_VARIABLE = re.compile(r"^[A-Za-z_$](?:[A-Za-z_$]*[0-9]){1,2}[A-Za-z_$]*$")
_PATH = re.compile(
    r"^(?:https?://|file:|\.{0,2}/(?!.*[=+])|~/|[A-Za-z]:[\\/]|[\w.-]+/[\w./-]+\.\w{1,5}$|[\w-]+\.(?:json|ya?ml"
    r"|pem|key|txt|env|toml|py|js|ts|crt|html|php|ini|cfg)$)"
)
_MACHINE = re.compile(
    r"^(?=.*[0-9])(?=.*[A-Za-z])[!-~]{8,}$|^(?=.*[a-z])(?=.*[A-Z])[A-Za-z+/=_-]{20,}$|^[A-Za-z0-9+/]{14,}={1,2}$"
)
_UUID = re.compile(r"^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")


def find_secrets(text: str) -> Iterator[Span]:
    """Returns the secrets in folded `text`; pieces may overlap."""
    if _PREFIX.search(text):
        yield from _known_forms(text)
    if "-----BEGIN" in text or "PuTTY-User" in text:
        yield from (m.span() for m in _PEM.finditer(text))
    if "LS0tLS1CRUdJTi" in text:
        yield from (m.span() for m in _ENCODED.finditer(text) if b"PRIVATE KEY" in base64.b64decode(m.group()[:64]))
    if "://" in text:
        yield from (_value(m) for m in _URL.finditer(text) if not _is_placeholder(m["v"] or m["w"]))
        yield from (_value(m) for m in _WEBHOOK.finditer(text) if any(c.isdigit() for c in m["v"]))
        yield from (m.span("v") for m in _QUERY.finditer(text) if _is_machine_made(m["v"]))
    yield from _named(text, _lowered(text))


def is_secret_value(name: str, value: str) -> bool:
    """True when a field called `name` with this value holds a secret; for objects, whose names and values are apart."""
    found = _FIELD.fullmatch(name[-64:])
    if found is None or "\n" in value:
        return False
    return _is_chosen(value, quoted=True) if found["weak"] else _is_machine_made(value)


def _known_forms(text: str) -> Iterator[Span]:
    for pattern, group in _library_rules(text):
        for m in pattern.finditer(text):
            start, end = m.span(group)
            if start >= 0 and not text[max(0, start - 1) : start].isalnum() and not text[end : end + 1].isalnum():
                yield start, end
    yield from (m.span() for m in _FORMS.finditer(text) if not _is_placeholder(re.split("[-_]", m.group())[-1] or "x"))
    yield from (m.span() for m in _RANDOM.finditer(text) if _is_mixed(m["v"]))


def _library_rules(text: str) -> Iterator[tuple[re.Pattern[str], int]]:
    for signs, patterns in _detectors():
        if any(sign in text for sign in signs):
            yield from ((pattern, 1 if pattern.groups and "gh" not in signs[0] else 0) for pattern in patterns)


@cache
def _detectors() -> tuple[tuple[tuple[str, ...], tuple[re.Pattern[str], ...]], ...]:
    """The library's patterns with their signs, loaded when the first text needs them."""
    made = []
    for module, name, signs in _PLUGINS:
        detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)
        made.append((signs, tuple(detector.denylist)))
    return tuple(made)


@cache
def _filters() -> Any:
    return import_module("detect_secrets.filters.heuristic")


def _lowered(text: str) -> str:
    """Small letters, each at its own place."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if c.isascii() else c for c in text)


def _named(text: str, low: str) -> Iterator[Span]:
    yield from _assignments(text, low)
    for signs, pattern, read in _places():
        if any(sign in low for sign in signs):
            yield from (span for m in pattern.finditer(text) if (span := read(m)) is not None)


@cache
def _places() -> tuple[tuple[tuple[str, ...], re.Pattern[str], Callable[[re.Match[str]], Span | None]], ...]:
    """Where a secret stands by its place, with what a text holds (in small letters) in which one may."""
    return (
        (("auth", "bearer", "basic"), _HEADER, _placed),
        (_TOOLS, _USER, _placed),
        (("login",), _NETRC, _placed),
        ((":*:", ":5432:", ":localhost", "localhost:"), _PGPASS, _placed),
        ((":$",), _HTPASSWD, _placed),
        (("auth", "login", "connect", "pdo", "jwt", "hmac", "fernet"), _CALL, _called),
        (("pw ", "pass", "secret"), _LINE, _chosen),
        (("env ", "arg ", "set"), _SPACED_NAME, _fitting),
        (("-",), _FLAG, _fitting),
        (("<", "value"), _XML, _tagged),
        (("identified", "password"), _SQL, _quoted),
        (_LABELS, _SAID, _spoken),
    )


def _placed(m: re.Match[str]) -> Span | None:
    if m.lastgroup in ("w", "x") and not _is_machine_made(m[m.lastgroup]):
        return None
    return None if _is_placeholder(m[m.lastgroup or 0]) else _value(m)


def _chosen(m: re.Match[str]) -> Span | None:
    return m.span("v") if _is_chosen(m["v"], quoted=False) else None


def _called(m: re.Match[str]) -> Span | None:
    return _value(m) if _is_chosen(m[m.lastgroup or 0], quoted=False) else None


def _quoted(m: re.Match[str]) -> Span | None:
    return m.span("v") if _is_chosen(m["v"], quoted=True) else None


def _fitting(m: re.Match[str]) -> Span | None:
    return m.span("v") if _fits(m["weak"], m["v"]) else None


def _tagged(m: re.Match[str]) -> Span | None:
    name = "v" if m["v"] is not None else "v2"
    return m.span(name) if _fits(m["weak"] or m["weak2"], m[name]) else None


def _spoken(m: re.Match[str]) -> Span | None:
    value = m["v"].rstrip(".,;:!?)\"'`")
    if m["weak"] and len(m["weak"]) < 6 and m["weak"].lower()[0] in "pп" and not value.isdigit():
        return None  # a PIN is a number
    told = m["cjk"] is not None or _TOLD.search(m.string, m.start(), m.start("v")) is not None
    if not _is_spoken(value, named=bool(m["weak"] or m["cjk"]), told=told):
        return None
    return m.start("v"), m.start("v") + len(value)


def _assignments(text: str, low: str) -> Iterator[Span]:
    done = -1
    for sign in _SIGNS.finditer(low):
        before = _NAME_BEFORE.search(text, max(0, sign.start() - 48), sign.start())
        start = before.start() if before else sign.start()
        if start <= done or (start and text[start - 1].isascii() and text[start - 1].isalnum()):
            continue
        if (m := _ASSIGNED.match(text, start)) is not None:
            done = start
            if (span := _assigned(text, m)) is not None:
                yield span


def _value(m: re.Match[str]) -> Span:
    return m.span(m.lastgroup or 0)


def _assigned(text: str, m: re.Match[str]) -> Span | None:
    """The value of an assignment when it is a secret."""
    name, op = m["name"], m["op"].strip()
    if not _is_whole(name, m["weak"]) or text[: m.start("name")].endswith("::"):
        return None
    if m["quoted"] is not None:
        if op == "," and not re.search(r"\([\"'`]?$", text[: m.start("name")][-2:]):
            return None  # a list, not the default of a name
        if op == "(" and not _is_chosen(m["quoted"], quoted=False):
            return None
        return m.span("quoted") if _is_literal_secret(name, m["quoted"], weak=bool(m["weak"])) else None
    if op in (",", "(", "||", "??") or m["after"]:
        return None
    bare = m["bare"].rstrip(".,:")
    if op == ">" and "<" not in text[m.end("bare") : m.end("bare") + 1]:
        return None
    shell = op == "=" and m["op"] == "=" and not text[m.end("op") : m.end("op") + 1].isspace()
    good = _is_bare_secret(name, bare, weak=bool(m["weak"]), shell=shell)
    return (m.start("bare"), m.start("bare") + len(bare)) if good else None


def _is_whole(name: str, weak: str | None) -> bool:
    """Is a short name a word of its own, as in `DB_PASS` or `dbPass`, and not the end of another ("compass")?"""
    if weak is None or len(weak) > 4:
        return True
    before = name[: name.lower().rfind(weak.lower())]
    if not before or not before[-1].isalpha() or (weak[0].isupper() and before[-1].islower()):
        return True
    return (
        re.search(r"(?i)(?:db|user|my|root|admin|smtp|mail|ftp|ldap|redis|login|key|store|auth|sudo|bind)$", before)
        is not None
    )


def _is_literal_secret(name: str, value: str, *, weak: bool) -> bool:
    """Is a value in quotes a secret? A constant (`JWT_SECRET`) may be a phrase that somebody chose."""
    if weak:
        phrase = name.isupper() and " " in value and len(value) <= 64 and any(c.isdigit() for c in value)
        return _is_chosen(value, quoted=True) or phrase
    chosen = (
        name.split(".")[-1].isupper()
        and name.endswith(("SECRET", "SECRET_KEY", "TOKEN"))
        and _is_chosen(value, quoted=False)
    )
    return _is_machine_made(value) or chosen or _is_key_id(name, value)


def _is_key_id(name: str, value: str) -> bool:
    """Some services' keys are UUIDs; of a name that says less, one is an ordinary id."""
    return _UUID.match(value) is not None and re.search(r"(?i)api_?key|secret|access_?key", name) is not None


def _is_bare_secret(name: str, value: str, *, weak: bool, shell: bool) -> bool:
    """Is a value without quotes a literal? `shell`: it stands right behind "=", as in a shell or a .env file."""
    if _is_placeholder(value) or _REFERENCE.match(value) or _PATH.match(value):
        return False
    if name.isupper() and weak and (shell or (value.isalpha() and len(value) >= 6 and value.islower())):
        return True
    if shell and _is_key_id(name, value):
        return True
    if weak and value.isdigit():
        return len(value) >= 4
    if not weak and not shell and (":" in value or _VARIABLE.match(value)):
        return False
    if _IDENTIFIER.match(value) and not (weak and shell and any(c.isdigit() for c in value)):
        return weak and not shell and value[-1].isdigit() and len(value) >= 7 and name.islower()
    return _is_chosen(value, quoted=False) if weak else _is_machine_made(value)


def _fits(weak: str | None, value: str) -> bool:
    return _is_chosen(value, quoted=True) if weak else _is_machine_made(value)


def _is_chosen(value: str, *, quoted: bool) -> bool:
    """Could a person have chosen `value` as a password, and is it no placeholder or reference?"""
    if len(value) < 4 or _is_placeholder(value) or _PATH.match(value):
        return False
    if " " in value:
        return False
    if any(c.isdigit() for c in value):
        return True
    if re.search(r"(?i)pass|secret|token|key", value):  # it says what it is about, "no-password-required"
        return False
    if re.search(r"[!@#$%^&*+=~?-]", value):
        return True
    return quoted and len(value) >= 6 and not _REFERENCE.match(value)


def _is_machine_made(value: str) -> bool:
    """Does `value` look random enough for a key?"""
    if not _MACHINE.match(value) or _is_placeholder(value) or _REFERENCE.match(value) or _PATH.match(value):
        return False
    if (
        _UUID.match(value)
        or value.replace(".", "").replace("-", "").isdigit()
        or re.fullmatch(r"0x[0-9a-fA-F]{1,16}", value)
    ):
        return False
    if _IDENTIFIER.match(value) or re.fullmatch(
        r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[a-z]+[0-9]{0,3}(?:[._:/-][a-z]*[0-9]{0,3})+", value
    ):
        return _is_mixed(value) and len(value) >= 24
    return not _filters().is_sequential_string(value)


def _is_spoken(value: str, *, named: bool, told: bool) -> bool:
    """Is `value` no word of the sentence? `named`: a password was named, which may be a number or a phrase; `told`: the
    sentence says what it is."""
    if len(value) < 4 or _is_placeholder(value) or _REFERENCE.match(value) or _PATH.match(value):
        return False
    if re.fullmatch(r"[A-Za-z][\w./-]*:[\w.-]+", value):  # an image, a host and its port
        return False
    if not any(c.isalpha() for c in value):
        return named and value.isdigit()
    if not named:  # a key or a token
        return len(value) >= 16 and _is_mixed(value) and _is_machine_made(value)
    if any(c.isdigit() for c in value):
        return told or len(value) >= 6
    signs = r"[A-Za-z][!@#$%^&*+=][A-Za-z]" + (r"|[A-Za-z]-[A-Za-z]+-[A-Za-z]" if told else "")
    return len(value) >= 8 and re.search(signs, value) is not None


def _is_mixed(value: str) -> bool:
    return sum(c.isdigit() for c in value) >= 2 and any(c.islower() for c in value) and any(c.isupper() for c in value)


def _is_placeholder(value: str) -> bool:
    return _PLACEHOLDER.match(value) is not None or len(set(value)) < 3


_FIELD = re.compile(rf"(?i)[\w.\- ]{{0,48}}?(?:(?P<weak>{_WEAK})|(?P<strong>{_STRONG})){_ENDING}")
