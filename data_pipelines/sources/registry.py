"""The data sets by name, each a TFDS builder that produces the common record format."""

from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean
from data_pipelines.sources.amazon_releases import Amazon2014, Amazon2018, Amazon2023
from data_pipelines.sources.amazon_reviews import Amazon2023Sample, AmazonInstruments2014
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.hm import HM
from data_pipelines.sources.movielens import Movielens1m, MovielensSmall
from data_pipelines.sources.netflix import Netflix
from data_pipelines.sources.sequences import Sequences

SOURCES: dict[str, type[RecordBuilder]] = {
    builder.name: builder
    for builder in (
        MovielensSmall,
        Movielens1m,
        Amazon2014,
        Amazon2018,
        Amazon2023,
        AmazonInstruments2014,
        Amazon2023Sample,
        HM,
        Netflix,
        Sequences,
    )
}


def find_source(name: str) -> type[RecordBuilder]:
    """Returns the builder class of a source.

    Raises:
      DataError: there is no such source; the message names the nearest one.
    """
    if name not in SOURCES:
        raise DataError(f"there is no source {name!r}; {did_you_mean(name, SOURCES)}There are {', '.join(SOURCES)}")
    return SOURCES[name]
