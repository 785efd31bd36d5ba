"""Questions to the hub: a limit on the first answer, nothing repeated that cannot succeed, and the reason in words.

huggingface_hub asks six times with growing pauses before it gives up on a host that never answered, 53 s in all, and
waits without end where a caller gives no limit. Here a host that has not answered yet gets one try of FIRST_ANSWER
seconds; if that fails, huggingface_hub is told what it is told in offline mode, so that whatever is cached is still
found. The limit is on the head of an answer: a body that keeps coming is read as huggingface_hub reads it. A command
asks first for what it will load, before torch is imported: whoever is refused has not waited for it.

    no address, refused, silent, proxy, certificate      known from the connection
    an answer of 500 or more, or none of the hub's       known from the first answer
    no such name, gated, an expired token, offline       known from huggingface_hub's own exceptions
"""

from __future__ import annotations

import contextvars
import functools
import json
import os
import queue
import socket
import ssl
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    set_client_factory,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from ..instrument.messages import say
from .config.names import is_path
from .errors import Problem, UserError, first_line, problem

if TYPE_CHECKING:
    from .config.schema import Config

FIRST_ANSWER = 5.0  # seconds until the head of an answer; the library's own limits are on each read
MAX_SHOWN = 110  # characters of a library's own sentence
DOWN_FOR = 60.0  # seconds in which a host that did not answer is not asked again: a model is a dozen files


class Unreachable(OfflineModeIsEnabled):
    """A host does not answer; huggingface_hub and datasets go on with their caches.

    Attributes:
        problem: why, and what to do.
    """

    def __init__(self, sentence: str, host: str, **values: Any):
        self.problem = problem(sentence, host=host, **values)
        super().__init__(self.problem.error)


# host -> whether it has answered in this process; host -> why not, and since when
_answered: set[str] = set()
_down: dict[str, tuple[float, Unreachable]] = {}
_first = threading.Lock()  # one question at a time to hosts that have not answered


@functools.cache
def limit_first_answer() -> None:
    """Puts the limit on every later question of this process to the hub."""
    set_client_factory(_client)


def ask_first(name: str, revision: str | None = None, kind: str = "model") -> None:
    """Asks for a name that is no path, before torch is imported: a refusal costs the question and no more.

    Nothing is asked for what is cached: it is found there by who loads it, whatever the hub says.

    Args:
        name: of a model or a data set; a path is left alone.
        revision: branch, tag or commit; None: main.
        kind: model or dataset.

    Raises:
        UserError: the hub does not answer, or does not give it.
    """
    if is_path(name) or _is_cached(name, revision, kind):
        return
    limit_first_answer()
    try:
        if kind == "dataset":
            HfApi().dataset_info(name)
        elif get_hf_file_metadata(hf_hub_url(name, constants.CONFIG_NAME, revision=revision)).commit_hash is None:
            raise FileMetadataError("an answer without the commit of the file")
    except Exception as error:  # of every kind; what is no refusal of the hub is said by who loads it
        why = None if isinstance(error, EntryNotFoundError) else hub_problem(error, name, kind)
        if why is None:
            return
        sentence = "data.hub" if kind == "dataset" else "model.load"
        raise UserError(Problem(say(sentence, name=name, source=name, what=why.error), why.hint)) from error


def ask_for_run(config: Config) -> None:
    """Asks first for the model and the data sets of a run.

    Raises:
        UserError: as ask_first.
    """
    ask_first(config.model.name_or_path, config.model.revision)
    for source in (config.data.train, config.data.eval or []):
        for name in [source] if isinstance(source, str) else source:
            ask_first(name, kind="dataset")


def _is_cached(name: str, revision: str | None, kind: str) -> bool:
    if kind == "model":
        return isinstance(try_to_load_from_cache(name, constants.CONFIG_NAME, revision=revision), str)
    raw = os.path.join(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    prepared = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    found = os.listdir(prepared) if os.path.isdir(prepared) else []
    # datasets writes owner/MyRows as owner___my_rows
    return os.path.isdir(raw) or _plain(name) in {_plain(folder.replace("___", "/")) for folder in found}


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()


def _client():
    client = default_client_factory()
    client.send = functools.partial(_send, client.send)
    return client


def _send(send: Callable, request: Any, **options: Any) -> Any:
    """httpx.Client.send with the limit; an upload's body may take as long as it takes."""
    host = request.url.netloc.decode()
    if host in _answered or request.method == "PUT":
        return _ask(send, request, host, options)
    with _first:
        return _ask(send, request, host, options)


def _ask(send: Callable, request: Any, host: str, options: dict[str, Any]) -> Any:
    since, unreachable = _down.get(host, (0.0, None))
    if unreachable is not None and time.monotonic() - since < DOWN_FOR:
        raise unreachable
    if request.method == "PUT" or (host in _answered and request.method == "POST"):
        return send(request, **options)
    own = request.extensions.get("timeout", {})
    ask = functools.partial(send, request, **options)
    try:
        if host in _answered:
            # who gives a read longer than a download's default awaits a long answer; without a limit, it waits for ever
            if (own.get("read") or 0) <= constants.DEFAULT_DOWNLOAD_TIMEOUT:
                request.extensions["timeout"] = own | {"read": FIRST_ANSWER}
            response = ask()
        else:
            request.extensions["timeout"] = own | {"connect": FIRST_ANSWER, "read": FIRST_ANSWER}
            response = _within(FIRST_ANSWER, ask, host)
            if response.status_code >= 500:
                raise Unreachable("hub.server_error", host, status=response.status_code)
    except Exception as error:
        trouble = _trouble(error, host)
        # a host that answered before may be lost for a moment: huggingface_hub asks again
        if trouble is None or (host in _answered and "ReadTimeout" not in _names(error)):
            raise
        _down[host] = time.monotonic(), trouble
        raise trouble from error
    request.extensions["timeout"] = own  # of the body
    _answered.add(host)
    return response


def _within(seconds: float, ask: Callable[[], Any], host: str) -> Any:
    """What `ask` returns or raises. In a thread of its own: looking up a name has no limit that can be set."""
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((ask(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    try:
        response, error = answer.get(timeout=seconds + 0.5)  # its own limit, if it keeps it, says more
    except queue.Empty:
        raise Unreachable("hub.silent", host, seconds=seconds) from None
    if error is not None:
        raise error
    return response


def _names(error: BaseException) -> set[str]:
    """Names of an exception's classes: huggingface_hub 1 raises httpx's, 2 httpx2's."""
    return {kind.__name__ for kind in type(error).__mro__}


def _trouble(error: BaseException, host: str) -> Unreachable | None:
    """Why a question was not answered; None where that is not a matter of the connection."""
    if isinstance(error, Unreachable):
        return error
    names, causes = _names(error), list(chain(error))
    if not {"TransportError", "RequestError", "InvalidURL"} & names:
        return None
    if "ProxyError" in names:
        return Unreachable("hub.proxy", host, what=first_line(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Unreachable("hub.no_address", host)
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Unreachable("hub.certificate", host, what=first_line(error))
    if "TimeoutException" in names:
        return Unreachable("hub.silent", host, seconds=FIRST_ANSWER)
    if "ConnectError" in names:
        return Unreachable("hub.refused", host, what=first_line(error))
    return Unreachable("hub.nonsense", host, what=first_line(error, typed=True))


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it, also where `from None` hides them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]


def hub_problem(error: BaseException, name: str, kind: str = "model") -> Problem | None:
    """Why the hub did not give what was asked for, and what to do; None where it is not about the hub.

    Args:
        error: what a library raised.
        name: a hub id.
        kind: model or dataset.
    """
    host = constants.ENDPOINT.partition("://")[2] or constants.ENDPOINT
    url = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    for cause in chain(error):
        if isinstance(cause, Unreachable):
            return cause.problem
        if isinstance(cause, GatedRepoError):
            return problem("hub.gated", name=name, url=url)
        if isinstance(cause, RevisionNotFoundError):
            return problem("hub.revision", name=name)
        if isinstance(cause, RepositoryNotFoundError):
            return problem("hub.not_found", name=name, host=host)
        if isinstance(cause, (FileMetadataError, json.JSONDecodeError)):
            return problem(
                "hub.nonsense", host=host, what=textwrap.shorten(first_line(cause), MAX_SHOWN, placeholder="…")
            )
        if isinstance(cause, OfflineModeIsEnabled):
            return problem("hub.offline", name=name)
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, name, host)
    if constants.HF_HUB_OFFLINE and any(
        isinstance(cause, (LocalEntryNotFoundError, OSError)) for cause in chain(error)
    ):
        return problem("hub.offline", name=name)
    return None


def _refused(error: HfHubHTTPError, name: str, host: str) -> Problem | None:
    """An answer that is no file and has no exception of its own."""
    status = error.response.status_code
    if status == 401:
        sent = "authorization" in error.response.request.headers
        return problem("hub.bad_token") if sent else problem("hub.not_found", name=name, host=host)
    if status == 403:
        return problem("hub.forbidden", name=name)
    if status >= 500 or status == 429:
        return problem("hub.server_error", host=host, status=status)
    if error.response.headers.get("X-Error-Code"):
        return None
    return problem("hub.nonsense", host=host, what=first_line(error))


def data_set_error(name: str) -> Exception | None:
    """What the hub itself says about a data set: datasets hides it behind an exception of its own."""
    try:
        HfApi().dataset_info(name)
    except Exception as error:  # of every kind
        return error
    return None


def refusal(sentence: str, error: BaseException, asked: str, kind: str = "model", **values: Any) -> Problem:
    """The problem `sentence`, whose {what} and hint are the hub's where the hub is the reason.

    Args:
        sentence: of the catalogue, with {what}.
        error: what a library raised.
        asked: the name that was loaded; a path is never asked of the hub.
        kind: model or dataset.
        values: of the sentence's other placeholders.
    """
    if "trust_remote_code=True" in str(error):  # transformers' own words, the same for model, config and tokenizer
        return problem("model.own_code", name=asked)
    why = None if os.path.exists(os.path.expanduser(asked)) else hub_problem(error, asked, kind)
    if why is None:
        return problem(sentence, what=first_line(error), **values)
    return Problem(say(sentence, what=why.error, **values), why.hint)
