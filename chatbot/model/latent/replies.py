"""The reply of each packed dialogue that gets a latent, with the positions that the loss needs.

Dims: B rows, T tokens, R replies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chatbot.text.layouts import IGNORED_LABEL


@dataclass(frozen=True)
class Replies:
    """One reply per dialogue of a packed batch.

    Attributes:
        rows: Row of each reply, int64 `[R]`.
        contexts: Position of the end of the message that the reply answers, int64 `[R]`.
        ends: Position of the reply's end of turn, int64 `[R]`.
        carrier: For each position, the index of the reply whose z is added there, or -1; int64 `[B, T]`. A reply's z is
            added from the end of the message to the last token of the reply. These are also the positions that predict
            the reply.
        labels: int64 `[B, T]`, not shifted, -100 without loss; the turns after the reply have none, because in a
            chat the model reads their history without z.
    """

    rows: torch.Tensor
    contexts: torch.Tensor
    ends: torch.Tensor
    carrier: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> torch.Tensor:
        """Index of the reply that each position is a target of, its end of turn included; -1 elsewhere; `[B, T]`."""
        shifted = torch.full_like(self.carrier, -1)
        shifted[:, 1:] = self.carrier[:, :-1]
        return shifted

    @property
    def words(self) -> torch.Tensor:
        """Like `targets`, without the ends of turns."""
        words = self.targets
        words[self.rows, self.ends] = -1
        return words

    def spread(self, z: torch.Tensor) -> torch.Tensor:
        """Return z `[R, Z]` at the positions that read it and zeros elsewhere, `[B, T, Z]`."""
        padded = torch.cat([z, z.new_zeros(1, z.shape[-1])])
        return padded[self.carrier]  # -1 reads the row of zeros


def choose_replies(batch: dict[str, torch.Tensor], end_id: int, last: bool = False) -> Replies:
    """Choose a reply per dialogue, at random or the last one, among the replies with loss; some dialogues have none.

    Args:
        batch: `input_ids`, `labels` and `segment_ids`, int64 `[B, T]` each, and `attention_mask` if there is padding.
        end_id: Id of the end of turn.
        last: Choose the last reply of every dialogue instead of drawing from torch's generator.
    """
    ids, segments, labels = batch["input_ids"].cpu(), batch["segment_ids"].cpu(), batch["labels"].cpu()
    is_end = ids == end_id
    if "attention_mask" in batch:
        is_end &= batch["attention_mask"].cpu().bool()
    carrier, learnt = torch.full_like(ids, -1), labels.clone()
    chosen: list[tuple[int, int, int]] = []
    for row in range(len(ids)):
        for segment in segments[row].unique().tolist():
            ends = (is_end[row] & (segments[row] == segment)).nonzero()[:, 0].tolist()
            # a turn carries loss if its end does
            turns = [i for i in range(1, len(ends)) if labels[row, ends[i]] != IGNORED_LABEL]
            if not turns:
                continue
            turn = turns[-1] if last else turns[int(torch.randint(len(turns), ()))]
            context, end = ends[turn - 1], ends[turn]
            carrier[row, context:end] = len(chosen)
            later = segments[row] == segment
            later[: end + 1] = False
            learnt[row, later] = IGNORED_LABEL
            chosen.append((row, context, end))
    rows, contexts, ends_ = (torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3).T).to(batch["input_ids"].device)
    device = batch["input_ids"].device
    return Replies(rows, contexts, ends_, carrier.to(device), learnt.to(device))
