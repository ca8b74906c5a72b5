"""Runs the examples of the documentation: every block of every Markdown file that is checked in.

  examples.py FOLDER ONCEPAY [PAGE...]

FOLDER has two development environments, `sandbox` and `http`, by the processor that they were started with (see examples.sh);
ONCEPAY is the program. Without a PAGE, all are read.

What is done with a block depends on its language, and each has one:

  sh, console   run by bash, in a copy of the repository with `.oncepay/dev.env`. In `console`, `$ ` begins a command, and the
                lines after it are what it prints. Every command must end with 0, unless its
                output shows an answer of 4xx or 5xx or a line `error: …`, or the next command is `echo $?`.
  sql           run on the environment's database, in a transaction that is rolled back
  json          must parse, and be what the API takes or answers where a comment says so
  toml, yaml, python, rust    must parse
  ini           settings of Postgres, which must exist
  ts, mermaid, text           not read: no parser is at hand. tsc compiles what the clients' README shows

A level-2 section is a session: it begins with a merchant of its own and an empty environment, and what one block sets is there in
the next. `ch_…` in a command stands for the last id of the kind that was printed, and `ch_01a2…` for the one that was shown so. In
outputs, `…` stands for anything, and ids, times and ports are not compared. Of an HTTP answer, the status, the headers that are
shown, and the body are compared.

Comments right before a block, which aren't rendered, say what is special about it:

  <!-- not run: REASON -->          it can't run here. What can be checked still is: commands, options and paths exist
  <!-- run by: FILE -->             another check runs it, and names the page or the scripts that the block names
  <!-- before: COMMANDS -->         brings about what the text presupposes
  <!-- shows: again -->             the block has the output of the last command, sent again
  <!-- shows: again, with NEW for OLD -->
  <!-- output varies: REASON -->    the output isn't compared
  <!-- request: METHOD PATH -->     the JSON is a body that the operation takes
  <!-- answer: STATUS METHOD PATH -->

Comments that hold up to the end of the section, or of the page if they come before the first section:

  <!-- processor: http -->          with the simulator in place of the sandbox
  <!-- settings: exported -->       `.oncepay/dev.env` is in the environment, as the text says of the reader's settings
  <!-- all run by: FILE -->         as above, for all blocks

Commands in the text, in backticks, must exist with their options, and so must operations such as `POST /v1/charges`. Wherever
they are, settings such as `ONCEPAY_URL` and metrics must be named outside the documentation, too, and what asks for a metric must
be PromQL, if promtool is at hand.
"""

import ast
import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
import urllib.request

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMAND_SECONDS_MAX = 120
ANNOTATIONS = {"not run", "run by", "before", "shows", "output varies", "request", "answer"}
SCOPED = {"processor", "settings", "all run by"}
UNREAD = {"ts", "mermaid", "text"}
NAME = re.compile(r"\b(?:ONCEPAY|oncepay)_\w+")
QUERY = re.compile(r"(?:[a-z_]+(?: by \([\w, ]*\))? ?\(.*\boncepay_|oncepay_\w+ ?(?:\{[^}]*=|[><=/])).*")
ID = re.compile(r"\b([a-z]{2,5}_)([0-9a-f]{32})\b")
SHORT_ID = re.compile(r"\b([a-z]{2,5}_)[0-9a-f]*…")
# In another order, the longer ones would be cut by the shorter ones.
MASKS = [
    (re.compile(r"\bwhsec_(?:[\w+/=]+|…)"), "whsec_SECRET"),
    (re.compile(r"\b([a-z]{2,5}_)(?:[0-9a-f]{32}|[0-9a-f]*…)"), r"\1ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d(?::\d\d)?)?"), "TIME"),
    (re.compile(r"\b\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"), "TIME"),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), r"\1:PORT"),
    (re.compile(r"\bin \d+ ms\b"), "in N ms"),
]


class Wrong(Exception):
    """What is wrong with an example, as a sentence, with the number of its line within the block."""

    def __init__(self, problem, line=0):
        super().__init__(problem)
        self.line = line


# Pages

class Block(types.SimpleNamespace):
    """A fenced block: `page`, `line` of its fence, `language`, `text`, `section`, and the comments before it, `notes`."""


def read(page, text):
    """The blocks of a page, and the pieces of code in its text with their lines."""
    blocks, spans = [], []
    section, scope, page_scope, notes = "", {}, {}, {}
    lines = iter(enumerate(text.splitlines(), 1))
    prose = []
    for number, line in lines:
        if fence := re.match(r"( *)(`{3,}|~{3,})\s*(.*)", line):
            indent, mark, language = fence.groups()
            body = []
            for _, line in lines:
                if line.strip() == mark:
                    break
                body.append(line.removeprefix(indent))
            blocks.append(Block(page=page, line=number, language=language.split(" ")[0], text="\n".join(body), section=section,
                                notes=page_scope | scope | notes))
            notes = {}
        elif comment := re.match(r" *<!-- *([a-z ]+): *(.*)", line):
            name, value = comment.groups()
            while not value.rstrip().endswith("-->"):
                value += "\n" + next(lines)[1]
            value = value.rstrip().removesuffix("-->").strip()
            if name in SCOPED:
                (scope if section else page_scope)[name] = value
            else:
                if name not in ANNOTATIONS:
                    blocks.append(Block(page=page, line=number, language="?", text=name, section=section, notes={}))
                notes[name] = value
        else:
            if line.startswith("## "):
                section, scope = line, {}
            if line.strip():
                if notes:
                    blocks.append(Block(page=page, line=number - 1, language="?", text=next(iter(notes)), section=section, notes={}))
                notes = {}
            prose.append((number, line))
            continue
        prose.append((number, ""))
    # A piece of code may go on in the next line of its paragraph.
    paragraph = []
    for number, line in [*prose, (0, "")]:
        if line.strip() and not line.startswith("|"):
            paragraph.append((number, line))
            continue
        for start, joined in [joined_lines(paragraph)] * bool(paragraph) + [([(0, number)], line)] * bool(line.strip()):
            for code in re.finditer(r"(?<!`)`([^`]+)`(?!`)", joined):
                at = max(index for offset, index in start if offset <= code.start())
                spans.append((at, re.sub(r"\s+", " ", code[1]).replace("\\|", "|")))
        paragraph = []
    return blocks, spans


def joined_lines(paragraph):
    """The lines as one, and at which offset each begins."""
    starts, joined = [], ""
    for number, line in paragraph:
        starts.append((len(joined), number))
        joined += line + "\n"
    return starts, joined


@functools.cache
def is_complete(text):
    """Whether bash has a whole command."""
    if text.rstrip(" ").endswith("\\"):
        return False
    done = subprocess.run(["bash", "-n"], input=text + "\n", capture_output=True, text=True)
    return done.returncode == 0 and "here-document" not in done.stderr


def commands(block):
    """The commands of a block: the line of each, its text, and what it prints, which is None where a block doesn't show that."""
    lines = list(enumerate(block.text.split("\n"), 1))
    found = []
    while lines:
        number, line = lines.pop(0)
        if block.language == "console":
            if not line.startswith("$ "):
                if not found:
                    raise Wrong("this block shows an output, and no command. Say which: <!-- shows: again -->", number)
                found[-1][2].append(line)
                continue
            line = line[2:]
        elif not line.strip() or line.startswith("#"):
            continue
        while not is_complete(line):
            if not lines:
                raise Wrong(f"bash can't read this command: {line}", number)
            line += "\n" + lines.pop(0)[1]
        found.append((number, line, []))
    return [(number, text, "\n".join(shown).rstrip() or None) for number, text, shown in found]


# What can be checked without running it

class Checker:
    """Looks up commands and operations, in a copy of the repository."""

    def __init__(self, oncepay, root):
        self.oncepay, self.root = oncepay, root
        self.api = json.loads((root / "openapi/openapi.json").read_text())

    @functools.cache
    def help(self, *command):
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX,
                              env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]})
        return done.returncode, done.stdout, done.stderr

    @functools.cached_property
    def names(self):
        """All names of settings and metrics that the code has."""
        files = (file for file in self.root.rglob("*") if file.is_file() and not file.is_symlink() and file.suffix not in (".md", ".svg"))
        return {name for file in files for name in NAME.findall(file.read_text(errors="replace"))}

    def unnamed(self, text):
        """The settings and metrics that nothing else names, each with its line."""
        for number, line in enumerate(text.splitlines(), 1):
            for name in NAME.findall(line):
                if name.endswith("_") and any(known.startswith(name) for known in self.names):
                    continue
                if not {name, re.sub(r"_(bucket|count|sum|FILE)$", "", name)} & self.names:
                    yield number, name

    def parse_oncepay(self, arguments):
        # A word in capitals stands for something, such as COMMAND.
        arguments = list(itertools.takewhile(lambda word: not re.fullmatch(r"[A-Z]+", word), arguments))
        # What comes before --help is parsed, and refused if it's unknown.
        status, out, said = self.help(self.oncepay, *arguments, "--help")
        if status != 0 or "Usage:" not in out:
            raise Wrong(f"`oncepay {' '.join(arguments)}` isn't a command: {said.strip().splitlines()[0] if said else status}")

    def parse(self, words):
        """Checks one simple command, as far as its program is ours."""
        while words and re.match(r"[A-Za-z_]\w*=", words[0]):
            words = words[1:]
        if not words:
            return
        program, *arguments = words
        if program == "(":
            return
        if program.split("/")[-1] == "oncepay" and "=" not in program and program not in ("…/oncepay", ".../oncepay"):
            return self.parse_oncepay(arguments)
        if program == "cargo" and arguments[:1] == ["run"] and "--" in arguments and "--example" not in arguments:
            return self.parse_oncepay(arguments[arguments.index("--") + 1:])
        if program == "cargo" and arguments[:1] == ["test"]:
            return self.parse_test(arguments[1:])
        if program == "curl":
            return self.parse_curl(arguments)
        if program in ("python3", "python", "bash", "sh"):
            if not arguments or arguments[0].startswith("-"):
                return
            program, *arguments = arguments
        if re.match(r"\.?[a-zA-Z]\w*/", program) and not program.startswith(("target/", ".venv/", "…")) and "/.venv/" not in program:
            self.parse_script(program, arguments)
        for word in arguments:
            if re.fullmatch(r"(\.ci|ops|load|examples|clients|tests|docs|migrations|src)/[\w./-]+", word) and "out/" not in word \
                    and ".venv" not in word and not (self.root / word).exists():
                raise Wrong(f"there is no {word}")

    def parse_script(self, path, arguments):
        there = self.root / path
        if not there.exists():
            raise Wrong(f"there is no {path}")
        flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
        if not flags:
            return
        main = there / "__main__.py" if there.is_dir() else there
        known = main.read_text()
        if "argparse" in known:
            known = self.help(sys.executable, path, "--help")[1]
        for flag in flags:
            if not re.search(re.escape(flag) + r"(?![\w-])", known):
                raise Wrong(f"{path} has no option {flag}")

    @functools.cached_property
    def tests(self):
        return "\n".join(file.read_text() for folder in ("src", "tests") for file in (self.root / folder).rglob("*.rs"))

    def parse_test(self, arguments):
        """The filters of `cargo test`: each must be a module or a test."""
        arguments = arguments[:arguments.index("--")] if "--" in arguments else arguments
        for before, word in zip(["", *arguments], arguments):
            if word.startswith("-") or before in ("--test", "--features"):
                continue
            *modules, last = word.split("::")
            # The last piece may be the beginning of a name, and the others are whole ones.
            for item in [*(rf"mod {module}\b" for module in modules), rf"(mod|fn) {last}"]:
                if not re.search(rf"\b{item}", self.tests):
                    raise Wrong(f"there is no test `{word}`")

    def parse_curl(self, arguments):
        method = body = url = None
        words = iter(arguments)
        for word in words:
            if word in ("-X", "--request"):
                method = next(words)
            elif word in ("-d", "--data"):
                body = next(words)
            elif word in ("-H", "-o"):
                next(words)
            elif not word.startswith("-"):
                url = word
        path = re.sub(r"^(\$\{?ONCEPAY_URL\}?|https?://[^/]*)", "", url or "")
        if path.startswith("/v1/"):
            self.request(method or ("POST" if body else "GET"), path, body)

    def operation(self, method, path):
        """The operation that serves a path, in which parameters may be placeholders."""
        path = path.split("?")[0]
        for template, of in self.api["paths"].items():
            segments = template.split("/"), path.split("/")
            if method.lower() in of and len(segments[0]) == len(segments[1]) and all(
                    known == given or known.startswith("{") and given for known, given in zip(*segments)):
                return of[method.lower()]
        # The one that CONTRIBUTING adds as an example.
        if f'"{path}"' not in (self.root / "docs/adding-an-operation/charge_notes.patch").read_text():
            raise Wrong(f"the API has no {method} {path}")
        return {}

    def resolve(self, node):
        while "$ref" in node:
            node = functools.reduce(lambda at, name: at[name], node["$ref"].removeprefix("#/").split("/"), self.api)
        return node

    def conforms(self, content, what, body):
        """Fails unless the body is what the schema of a request or an answer describes."""
        # An id that is shortened stands for one.
        whole = re.sub(r'"([a-z]{2,5}_)[0-9a-f]*…', rf'"\g<1>{"01a2" * 8}', body)
        try:
            instance = json.loads(whole)
        except ValueError as error:
            raise Wrong(f"{what}: this isn't JSON: {error}") from None
        media = next((of for name, of in content.items() if "json" in name), None)
        if media is None:
            raise Wrong(f"{what} has no JSON")
        schema = {**media["schema"], "components": self.api["components"]}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(instance):
            raise Wrong(f"{what}: the schema forbids {'.'.join(map(str, error.path)) or 'it'}: {error.message}")

    def request(self, method, path, body):
        operation = self.operation(method, path)
        # Elisions aside, such as {"amount":"40.00",…}.
        if body is None or re.search(r"[,{] *…", body):
            return
        content = self.resolve(operation.get("requestBody", {})).get("content", {})
        self.conforms(content, f"{method} {path}", body)

    def answer(self, status, method, path, body):
        answers = self.operation(method, path)["responses"]
        if status not in answers:
            raise Wrong(f"{method} {path} isn't answered with {status}")
        self.conforms(self.resolve(answers[status]).get("content", {}), f"{status} of {method} {path}", body)

    def line(self, text):
        """Checks all commands of a line of shell."""
        text = re.sub(r"<<-?\s*'?(\w+)'?\n.*?\n\1$", "", text.replace("\\\n", " "), flags=re.S | re.M)
        for name in re.findall(r"\b\d{4}-\d\d-\d\d-\d{6}_\w+", text):
            if not (self.root / "migrations" / name).exists():
                raise Wrong(f"there is no migration {name}")
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&()<>\n")
        lexer.whitespace, lexer.whitespace_split = " \t", True
        lexer.commenters = "#"
        try:
            tokens = list(lexer)
        except ValueError:
            return
        words, skip = [], False
        for token in [*tokens, ";"]:
            if skip:
                skip = False
            elif re.fullmatch(r"[<>]+&?", token):
                skip = True
            elif re.fullmatch(r"[;|&()\n]+", token) or token in ("if", "then", "do", "done", "until", "while", "!"):
                self.parse(words)
                words = []
            else:
                words.append(token)

    def span(self, code):
        """Checks a command or an operation that the text names."""
        if match := re.match(r"((?:(?:GET|POST|PUT|PATCH|DELETE)(?:, | or )?)+) (/v1/[^\s?`]*)", code):
            path = re.sub(r"/…", "/{id}", match[2]).rstrip("/")
            if "…" not in path.replace("_…", ""):
                for method in re.findall(r"[A-Z]+", match[1]):
                    self.operation(method, path)
        elif code in ("oncepay", "cargo", "python3"):
            return
        elif re.match(r"([A-Z][A-Z_]*=\S* )*((target/\w+/)?oncepay|cargo (run --|test)|python3? |\.ci/\w|ops/\w|load/\w|curl) ?", code) \
                and not re.search(r"…|^(ops|load)/[\w./]*$", code.split(" ")[0]) and not re.match(r"oncepay[/:_-]|oncepay \w+ …", code):
            try:
                self.line(re.sub(r" …(?= |$)", "", code))
            except Wrong as wrong:
                # Text may name an option without its value.
                if "a value is required for" not in str(wrong):
                    raise


# Running

class Session:
    """A bash that keeps what one command sets for the next one, and a merchant of its own."""

    def __init__(self, work, folder, environment, merchant, is_exported):
        self.ids = {match[1]: match[0] for match in ID.finditer(json.dumps(merchant))}
        (folder / ".oncepay").mkdir(exist_ok=True)
        (folder / ".oncepay/dev.env").write_text(environment)
        self.file = work / "command"
        shell = {"PATH": f"{work}/bin:{os.environ['PATH']}", "HOME": f"{work}/home", "CURL_HOME": f"{work}/home", "LC_ALL": "C.UTF-8",
                 # Who changes a policy, in the examples.
                 "USER": "alice", "PGCONNECT_TIMEOUT": "5"}
        self.bash = subprocess.Popen(["bash"], cwd=folder, env=shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, start_new_session=True)
        if is_exported:
            self.run("set -a; . .oncepay/dev.env; set +a")

    def fill(self, command):
        """The command with ids in place of what stands for them."""
        def known(match):
            if not (whole := self.ids.get(match[0]) or self.ids.get(match[1])):
                raise Wrong(f"nothing has printed what {match[0]} stands for")
            return whole

        return SHORT_ID.sub(known, command)

    def run(self, command):
        """Runs a command. Returns its status and what it printed."""
        if self.bash.stdin.closed or self.bash.poll() is not None:
            raise Wrong("an example before this one has ended the shell")
        self.file.write_text(self.fill(command) + "\n")
        self.bash.stdin.write(f'(exit ${{status-0}}); . {self.file} </dev/null; status=$?; printf "\\n@%s@\\n" $status\n'.encode())
        self.bash.stdin.flush()
        said, deadline = b"", time.monotonic() + COMMAND_SECONDS_MAX
        with selectors.DefaultSelector() as selector:
            selector.register(self.bash.stdout, selectors.EVENT_READ)
            while not (end := re.search(rb"\n@(\d+)@\n\Z", said)):
                if not selector.select(deadline - time.monotonic()):
                    self.end()
                    raise Wrong(f"`{command}` still runs after {COMMAND_SECONDS_MAX} s, and has printed {said.decode()!r}")
                if not (more := os.read(self.bash.stdout.fileno(), 65536)):
                    # Its output ends a moment before it does.
                    self.bash.wait(COMMAND_SECONDS_MAX)
                    raise Wrong(f"`{command}` ends the shell, and has printed {said.decode()!r}")
                said += more
        # What curl says of an answer that is shown, too.
        text = re.sub(r"(?m)^curl: \(22\) .*\n", "", said[:end.start()].decode().replace("\r", ""))
        self.ids |= {match[1]: match[0] for match in ID.finditer(text)}
        return int(end[1]), text

    def learn(self, shown, printed):
        """Remembers which ids the shortened ones of an output stand for, if it shows all of a kind."""
        short = list(dict.fromkeys(match[0] for match in SHORT_ID.finditer(shown)))
        whole = list(dict.fromkeys(match[0] for match in ID.finditer(printed)))
        for prefix in {name.split("_")[0] for name in short}:
            of = [[name for name in names if name.startswith(f"{prefix}_")] for names in (short, whole)]
            if len(of[0]) == len(of[1]):
                self.ids |= {name: id for name, id in zip(*of) if name != f"{prefix}_…"}

    def end(self):
        try:
            os.killpg(self.bash.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.bash.communicate()


def masked(text):
    for pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    return text


def pattern_of(shown):
    """A regular expression for a text in which … stands for anything."""
    lines = [re.sub(r"[ \t]+", " ", line.rstrip()) for line in masked(shown).split("\n")]
    whole = "".join(r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", ".*?") + "\n" for line in lines)
    return re.compile(whole)


def is_text(shown, printed):
    printed = "\n".join(re.sub(r"[ \t]+", " ", line.rstrip()) for line in masked(printed).strip("\n").split("\n"))
    return pattern_of(shown.strip("\n")).fullmatch(printed + "\n")


def is_json(shown, printed):
    shown, printed = ("".join(line.strip() for line in text.splitlines()) for text in (shown, printed))
    return re.fullmatch(re.escape(masked(shown)).replace("…", ".*"), masked(printed))


def difference(shown, printed):
    """How an output differs from the one that is shown, as a sentence, or None."""
    if shown.startswith("HTTP/"):
        head, _, body = shown.partition("\n\n")
        first, *headers = head.splitlines()
        printed_head, _, printed_body = printed.partition("\n\n")
        printed_first, *printed_headers = masked(printed_head).splitlines()
        if first.strip() != printed_first.strip():
            return f"- {first}\n+ {printed_first}"
        # Headers may be followed by the body at once, after an elision.
        if not body and headers and headers[-1].startswith("{"):
            body = headers.pop()
        for header in headers:
            if header != "…" and masked(header).strip() not in map(str.strip, printed_headers):
                name = header.split(":")[0]
                return f"- {header}\n+ {next((line for line in printed_headers if line.startswith(name + ':')), 'no such header')}"
        return difference(body, printed_body) if body else None
    same = is_json if shown.startswith(("{", "[")) else is_text
    if same(shown, printed):
        return None
    return "\n".join([f"- {line}" for line in shown.splitlines()] + [f"+ {line}" for line in printed.strip().splitlines()])


class Environments:
    """The two development environments, a copy of the repository, and the sessions."""

    def __init__(self, folder, oncepay):
        self.work = pathlib.Path(tempfile.mkdtemp(dir=folder))
        self.copy, self.settings = self.work / "oncepay", {}
        for processor in ("sandbox", "http"):
            text = (pathlib.Path(folder) / processor / "dev/dev.env").read_text()
            self.settings[processor] = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.copy / name, follow_symlinks=False)
        for place in ("bin/oncepay", "oncepay/target/debug/oncepay"):
            (self.work / place).parent.mkdir(parents=True, exist_ok=True)
            (self.work / place).symlink_to(pathlib.Path(oncepay).resolve())
        (self.work / "home").mkdir()
        # Without that curl ends with 0 whatever it's answered.
        (self.work / "home/.curlrc").write_text("silent\nshow-error\nfail-with-body\n")
        self.checker = Checker(str(pathlib.Path(oncepay).resolve()), self.copy)

    def session(self, processor, is_exported):
        settings = self.settings[processor]
        body = json.dumps({"name": "A section", "fee_rate": "0.029", "fee_fixed": "0.30"}).encode()
        key = {"Authorization": f"Bearer {settings['ONCEPAY_OPERATOR_KEY']}", "Content-Type": "application/json",
               "Idempotency-Key": f"section-{time.monotonic_ns()}"}
        request = urllib.request.Request(f"{settings['ONCEPAY_URL']}/v1/operator/merchants", body, key)
        with urllib.request.urlopen(request, timeout=COMMAND_SECONDS_MAX) as answer:
            merchant = json.load(answer)
        text = "".join(f"{name}={value}\n" for name, value in (settings | {"ONCEPAY_API_KEY": merchant["api_key"]["key"]}).items())
        return Session(self.work, self.copy, text, merchant, is_exported)

    def sql(self, statements, processor="sandbox"):
        done = subprocess.run(["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-", self.settings[processor]["DATABASE_URL"]],
                              input=statements, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
        if done.returncode != 0:
            raise Wrong(done.stderr.strip())
        return done.stdout


class Run:
    """Checks pages, and collects what is wrong with them."""

    def __init__(self, environments):
        self.environments, self.checker = environments, environments.checker
        self.wrong, self.counts, self.not_run, self.queries = [], {}, [], []

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def page(self, name, text):
        session = key = None
        try:
            blocks, spans = read(name, text)
            for block in blocks:
                about = block.section, block.notes.get("processor", "sandbox"), "settings" in block.notes
                if about != key:
                    if session:
                        session.end()
                    session, key, self.last = None, about, None

                def start(about=about):
                    nonlocal session
                    session = session or self.environments.session(*about[1:])
                    return session

                try:
                    self.block(block, start)
                except Wrong as wrong:
                    self.wrong.append(f"{name}:{block.line + wrong.line}: {wrong}")
            self.wrong += [f"{name}:{number}: nothing is called {unknown}" for number, unknown in self.checker.unnamed(text)]
            self.queries += [(name, number, code) for number, code in spans if QUERY.fullmatch(code)]
            return [(name, number, code) for number, code in spans]
        finally:
            if session:
                session.end()

    def block(self, block, start):
        language, notes = block.language, block.notes
        if not language:
            raise Wrong("this block has no language")
        if language == "?":
            raise Wrong(f"the comment `{block.text}` is unknown, or isn't right before a block")
        if language in UNREAD:
            self.count(f"{language} not read")
        elif language in ("sh", "bash", "console"):
            self.shell(block, start)
        elif "not run" in notes:
            self.count("not run")
            self.not_run.append((block, notes["not run"]))
        elif language == "json":
            self.count("parsed")
            try:
                json.loads(block.text)
            except ValueError as error:
                raise Wrong(f"this isn't JSON: {error}") from None
            if "request" in notes:
                self.checker.request(*notes["request"].split(), block.text)
            if "answer" in notes:
                self.checker.answer(*notes["answer"].split(), block.text)
        elif language == "sql":
            self.environments.sql(f"BEGIN;\n{block.text}\n;ROLLBACK;")
            self.count("run")
        elif language == "ini":
            names = re.findall(r"^\s*(\w+)\s*=", block.text, re.M)
            known = self.environments.sql("SELECT name FROM pg_settings").split()
            for name in names:
                if name not in known:
                    raise Wrong(f"Postgres has no setting {name}")
            self.count("parsed")
        elif language in PARSERS:
            try:
                PARSERS[language](block.text)
            except (SyntaxError, ValueError, yaml.YAMLError) as error:
                raise Wrong(f"this isn't {language}: {error}") from None
            self.count("parsed")
        else:
            raise Wrong(f"nobody checks blocks in `{language}`")

    def shell(self, block, start):
        notes = block.notes
        elsewhere = notes.get("run by") or notes.get("all run by")
        if "shows" in notes:
            self.count("run")
            return self.again(block, start())
        found = commands(block)
        if not found:
            raise Wrong("this block has no command")
        for number, command, _ in found:
            self.queries += [(block.page, block.line + number, query) for query in re.findall(r"^promtool query .* '(.*)'$", command)]
            try:
                self.checker.line(command)
            except Wrong as wrong:
                raise Wrong(wrong, number) from None
        if "not run" in notes:
            if len(notes["not run"].split()) < 2:
                raise Wrong("why is this not run?")
            self.count("not run")
            self.not_run.append((block, notes["not run"]))
        elif elsewhere:
            self.elsewhere(block, elsewhere)
            self.count("run by another check")
        else:
            session = start()
            if "before" in notes:
                status, said = session.run(f"(set -e -a; . .oncepay/dev.env; set +a\n{notes['before']}\n)")
                if status != 0:
                    raise Wrong(f"what comes before this block ends with {status}:\n{said}")
            for (number, command, shown), (_, following, _) in zip(found, [*found[1:], (0, "", None)]):
                try:
                    self.command(session, command, shown, notes, following == "echo $?")
                except Wrong as wrong:
                    raise Wrong(wrong, number) from None
            self.count("run")

    def elsewhere(self, block, path):
        if not (ROOT / path).exists():
            raise Wrong(f"there is no {path} to run this")
        text = (ROOT / path).read_text()
        scripts = re.findall(r"[\w-]+\.(?:py|js|ts|sh)\b", block.text)
        if pathlib.Path(block.page).name not in text and not (scripts and all(script in text for script in scripts)) and not all(
                command.split("#")[0].strip() in text for _, command, _ in commands(block)):
            raise Wrong(f"{path} doesn't name this page, nor what this block runs")

    def command(self, session, command, shown, notes, may_fail=False):
        self.last = command
        status, printed = session.run(command)
        # What is shown tells that it fails.
        tells = may_fail or shown and (status == 22 and re.match(r"HTTP/\S+ [45]", shown) or re.search("^error: ", shown, re.M))
        if status != 0 and not tells:
            raise Wrong(f"`{command}` ends with {status}, not 0, and prints\n{printed.strip()}")
        if shown and "output varies" not in notes and (differs := difference(shown, printed)):
            raise Wrong(f"`{command}` doesn't print what is shown (-) but (+)\n{differs}")
        if shown:
            session.learn(shown, printed)
        if shown and "output varies" in notes and not printed.strip():
            raise Wrong(f"`{command}` prints nothing")

    def again(self, block, session):
        shows = block.notes["shows"]
        match = re.fullmatch(r"again(?:, with (\S+) for (\S+))?", shows)
        if not match or not self.last:
            raise Wrong(f"what is shown? `{shows}` isn't known, or nothing was run before")
        command = self.last
        if match[1]:
            if match[2] not in command:
                raise Wrong(f"`{command}` has no {match[2]}")
            command = command.replace(match[2], match[1])
        last = self.last
        self.command(session, command, block.text, block.notes)
        self.last = last

    def spans(self, spans):
        """Checks the pieces of code in the text, several at a time: each may start a program."""
        def check(span):
            name, number, code = span
            try:
                self.checker.span(code)
            except Wrong as wrong:
                return f"{name}:{number}: {wrong}"

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            self.wrong += filter(None, pool.map(check, spans))


    def promql(self):
        """Has promtool read all queries."""
        promtool = shutil.which("promtool") or pathlib.Path.home() / ".cache/oncepay-prometheus/usr/bin/promtool"
        if not os.path.exists(promtool):
            self.counts["queries not read"] = len(self.queries)
            return
        rules = [{"record": f"query:{index}", "expr": query} for index, (_, _, query) in enumerate(self.queries)]
        file = self.environments.work / "rules.yml"
        file.write_text(json.dumps({"groups": [{"name": "examples", "rules": rules}]}))
        done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
        said = done.stdout + done.stderr
        problems = re.findall(r'"query:(\d+)".*?: (.*)', said)
        for index, problem in problems:
            name, number, query = self.queries[int(index)]
            self.wrong.append(f"{name}:{number}: `{query}` isn't PromQL: {problem}")
        if done.returncode != 0 and not problems:
            self.wrong.append(f"promtool: {said}")
        self.counts["queries read"] = len(self.queries)


def rustfmt(text):
    done = subprocess.run(["rustfmt", "--edition", "2024", "--emit", "stdout"], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip())


PARSERS = {"python": ast.parse, "rust": rustfmt, "toml": tomllib.loads, "yaml": yaml.safe_load}


def main():
    folder, oncepay, *pages = sys.argv[1:]
    if not pages:
        listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        pages = [name for name in listed.split("\0") if name and (ROOT / name).exists()]
    run = Run(Environments(folder, oncepay))
    spans = [span for name in pages for span in run.page(name, (ROOT / name).read_text())]
    run.spans(spans)
    run.promql()
    for block, reason in run.not_run:
        print(f"not run: {block.page}:{block.line}: {reason}")
    print(f"{len(pages)} pages; blocks: " + ", ".join(f"{number} {what}" for what, number in sorted(run.counts.items())))
    if run.wrong:
        sys.exit("\n".join(run.wrong))


if __name__ == "__main__":
    main()
