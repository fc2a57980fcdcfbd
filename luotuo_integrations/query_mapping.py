"""QueryMapping: the part of LuotuoEmbeddings that holds a query mapper, applies it and fits one."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.texts import Kind, Vectors


class QueryMapping:
    """A base of LuotuoEmbeddings, which has the attributes that are asked of it here."""

    if TYPE_CHECKING:  # for the type checker alone: pydantic would take them for fields
        model: str
        fingerprint: Any
        normalize: bool | None
        model_copy: Any
        _mapper: LinearQueryMapper | None

    @property
    def mapper(self) -> LinearQueryMapper | None:
        """What moves the vectors of queries towards their answers; None where nothing does. It may be set."""
        return self._mapper

    @mapper.setter
    def mapper(self, mapper: LinearQueryMapper | None) -> None:
        if mapper is not None and self.normalize is False:
            msg = "a query mapper needs vectors of length 1; leave normalize=False out"
            raise ValueError(msg)
        self._mapper = mapper

    def fit_mapper(self, pairs: Iterable[tuple[str, str]], *, passages: Sequence[str] = ()) -> LinearQueryMapper:
        """Fit a mapper on questions and the texts that answer them; see ``mapper_fit.fit_mapper``.

        Args:
            pairs: (question, answer text); a text may answer several questions.
            passages: Further texts of the collection, among which the answers must be found.

        Returns:
            The mapper, for ``mapper``; the identity, which says why, where pairs are few or it would not surely help.

        Raises:
            TypeError: If a pair is not two strings.
        """
        from luotuo_integrations.mapper_fit import fit_mapper_of_texts

        return fit_mapper_of_texts(self.model_copy(update={"mapper": None}), pairs, passages)

    def _mapped(self, vectors: Vectors, kind: Kind) -> Vectors:
        """Vectors as they come, or moved in place where they are those of queries and there is a mapper."""
        if kind == "query" and self._mapper is not None:
            self._mapper.check_model(self.fingerprint, self.model)
            vectors[:] = self._mapper(vectors)
        return vectors
