"""`score(images, prompts)`, whoever does the scoring. Everything here is one `submit`, waited for or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewardzoo.clients.cache import CachedTransport, ScoreCache
from rewardzoo.clients.calls import Call
from rewardzoo.clients.dispatch import Dispatcher
from rewardzoo.clients.images import ImageLike, TorchTensor
from rewardzoo.clients.mixing import Mixture, side_by_side
from rewardzoo.clients.process import PerProcess
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.transport import Transport
from rewardzoo.errors import DeadlineError, ItemsFailedError

Images = Iterable[ImageLike] | NDArray[Any] | TorchTensor
"""Several images: a sequence of them, an array (N, H, W, C) or a torch tensor (N, C, H, W)."""
Metadata = Sequence[Mapping[str, Any]]
Reward = str | Sequence[str] | Mapping[str, float] | Mixture
"""What to score by: a reward, several side by side, several with weights, or a mixture of them."""
OnError = Literal["raise", "nan", "none"]

# How much longer than a call's deadline its caller waits: the transport's own error says more.
_GRACE = 0.5
_T = TypeVar("_T")


class Scorer:
    """What `RewardClient` and `LocalRewards` share, and what a trainer should ask for. Thread-safe.

    `timeout` is how many seconds one call may take in all; at most `max_in_flight` parts are with the
    transport at a time, of all calls together. `reward` is meant where a call names none. `cache` is asked
    before the transport.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        timeout: float,
        max_in_flight: int,
        reward: Reward | None = None,
        cache: ScoreCache | None = None,
    ) -> None:
        if not timeout > 0 or max_in_flight < 1:
            raise ValueError(f"timeout must be > 0 and max_in_flight >= 1, got {timeout} and {max_in_flight}")
        self.cache = cache
        self._transport = transport = CachedTransport(transport, cache) if cache else transport
        self._timeout = timeout
        self._reward = reward
        self._unnamed = "name the reward, as in reward='hpsv2:v2.1'"
        self._dispatcher = PerProcess(lambda: Dispatcher(transport, max_in_flight))

    @overload
    def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: Literal["raise", "nan"] = "raise",
    ) -> NDArray[np.float32]: ...
    @overload
    def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: Literal["none"],
    ) -> list[Any]: ...
    def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: OnError = "raise",
    ) -> NDArray[np.float32] | list[Any]:
        """Score N image-prompt pairs: float32 (N,) in the reward's raw scale, in their order.

        `prompts` is one text an image, or one for all. `metadata` is one JSON object an item, for
        rewards that ask for it.

        `reward` may be several, and the images are sent once for all where the server can do that: a list
        of R names gives (N, R); a mapping of names to weights gives their weighted sum (N,), a `Mixture`
        its total. `score_result` has the parts.

        An item that cannot be scored raises at the end, with `on_error="nan"` it is NaN, and with "none"
        the scores come as a list, with None for it.

        Raises:
            ItemsFailedError: some items could not be scored; it carries the other scores.
            RequestError, UnavailableError: the call as a whole failed (see `rewardzoo.errors`).
            ValueError: the lengths of the arguments differ.
        """
        future = self.submit(images, prompts, reward=reward, metadata=metadata, on_error=on_error)
        scores: NDArray[np.float32] | list[Any] = self._wait(future)
        return scores

    def score_result(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
    ) -> ScoreResult:
        """Score like `score`, and return item errors, details, provenance and parts beside the scores.

        Raises:
            RequestError, UnavailableError, ValueError: as `score`; never for a single item.
        """
        return self._wait(self.submit_result(images, prompts, reward=reward, metadata=metadata))

    def submit(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: OnError = "raise",
    ) -> Future[Any]:
        """Begin to score, and return the future of what `score` returns.

        The images must not be changed until it is done. Cancelled, it sends nothing more. Thousands may
        be open: they share the same few threads and requests.

        Raises:
            ValueError: as `score`, at once. Everything else is in the future.
        """
        if on_error not in _SHAPED:
            raise ValueError(f"on_error must be 'raise', 'nan' or 'none', got {on_error!r}")
        return self._begin(images, prompts, reward, metadata, _SHAPED[on_error])

    def submit_result(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
    ) -> Future[ScoreResult]:
        """Begin to score, and return the future of what `score_result` returns; see `submit`."""
        return self._begin(images, prompts, reward, metadata, lambda result: result)

    def close(self) -> None:
        """Free connections or models. Calls that are under way fail."""
        if dispatcher := self._dispatcher.made():
            dispatcher.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def patience(self) -> float | None:
        """How many seconds to wait for a future of `submit` before giving it up; None is for ever."""
        return None if self._timeout == float("inf") else self._timeout + _GRACE

    def _begin(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        reward: Reward | None,
        metadata: Metadata | None,
        shape: Callable[[ScoreResult], Any],
    ) -> Future[Any]:
        items = _as_list(images)
        texts = [prompts] * len(items) if isinstance(prompts, str) else list(prompts)
        _check_lengths(len(items), len(texts), metadata)
        reward = self._reward if reward is None else reward
        if reward is None:
            raise ValueError(self._unnamed)
        names, combine = _chosen(reward)
        call = Call(
            names,
            items,
            texts,
            metadata,
            time.monotonic() + self._timeout,
            lambda parts: shape(combine(parts, texts)),
        )
        self._dispatcher().submit(call)
        return call.future

    def _wait(self, future: Future[_T]) -> _T:
        try:
            return future.result(self.patience)
        except TimeoutError as error:
            if future.done():
                raise
            raise DeadlineError(f"no answer within {self._timeout:g} s") from error
        finally:
            future.cancel()  # without effect on one that is done


def _raised(result: ScoreResult) -> NDArray[np.float32]:
    if result.errors:
        raise ItemsFailedError(result.errors, result)
    return result.scores


def _with_none(result: ScoreResult) -> list[Any]:
    scores = result.scores.astype(object)
    scores[np.isnan(result.scores)] = None
    return list(scores.tolist())


_SHAPED: Mapping[str, Callable[[ScoreResult], Any]] = {
    "raise": _raised,
    "nan": lambda result: result.scores,
    "none": _with_none,
}


def _chosen(
    reward: Reward,
) -> tuple[tuple[str, ...], Callable[[Mapping[str, ScoreResult], Sequence[str]], ScoreResult]]:
    """Return which rewards are to be scored, and how their results and the prompts become one."""
    if isinstance(reward, str):
        return (reward,), lambda parts, _: parts[reward]
    if isinstance(reward, Mapping):
        reward = Mixture(reward)
    if isinstance(reward, Mixture):
        # A group of GRPO's is the samples of one prompt.
        return reward.rewards, reward.combine
    names = tuple(reward)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"name one or more rewards, each once, got {list(names)}")
    return names, lambda parts, _: side_by_side(parts)


def _as_list(images: Images) -> list[ImageLike]:
    if isinstance(images, str | Path | bytes | Image.Image):
        raise ValueError(f"images must be a sequence, got one {type(images).__name__}: use [image]")
    # Whether it is a tensor is asked last: it takes longer than everything else here.
    if isinstance(images, np.ndarray) or (
        not isinstance(images, list | tuple) and isinstance(images, TorchTensor)
    ):
        if images.ndim != 4:
            raise ValueError(
                "images as one array must be (N, H, W, C), as one tensor (N, C, H, W); "
                f"got {images.ndim} dimensions. For a single image use [image]"
            )
        if not isinstance(images, np.ndarray):
            images = images.detach().cpu()  # one copy from the device instead of one an image
        return [images[i] for i in range(len(images))]
    # Tensors leave their device here, in the caller's thread and on its stream.
    return [_on_host(image) for image in images]


def _on_host(image: ImageLike) -> ImageLike:
    if isinstance(image, np.ndarray | Image.Image | str | bytes | Path) or not isinstance(image, TorchTensor):
        return image
    return image.detach().cpu()


def _check_lengths(images: int, prompts: int, metadata: Metadata | None) -> None:
    if images != prompts:
        raise ValueError(f"one prompt an image, got {images} images and {prompts} prompts")
    if metadata is not None and len(metadata) != images:
        raise ValueError(f"one metadata an image, got {images} images and {len(metadata)} metadata")
