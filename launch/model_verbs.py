"""Verbs of named potentials: `foundation models ...` and `foundation publish`."""

from launch.parser import Loaded, Verb
from launch.words import name_first


def _list() -> Loaded:
    from foundation.released import ListConfig, listed
    from launch import model_tables

    return Loaded(config=ListConfig, run=lambda config: model_tables.listed(listed(config)))


def _info() -> Loaded:
    from foundation.released import InfoConfig, described
    from launch import model_tables

    return Loaded(
        config=InfoConfig,
        run=lambda config: model_tables.info(config, *described(config.name)),
        expand=lambda words: name_first(words, "--name"),
    )


def _download() -> Loaded:
    from foundation.released import DownloadConfig, download
    from launch import model_tables

    return Loaded(
        config=DownloadConfig,
        run=lambda config: model_tables.paths(download(config)),
        expand=lambda words: name_first(words, "--name"),
    )


def _verify() -> Loaded:
    from foundation.released import VerifyConfig, verify
    from launch import model_tables

    return Loaded(
        config=VerifyConfig,
        run=lambda config: model_tables.verified(verify(config)),
        expand=lambda words: name_first(words, "--name"),
    )


def _path() -> Loaded:
    from foundation.released import PathConfig, described
    from launch import model_tables

    return Loaded(
        config=PathConfig,
        run=lambda config: model_tables.paths([described(config.name)[0]]),
        expand=lambda words: name_first(words, "--name"),
    )


def _lineage() -> Loaded:
    from foundation.released import LineageConfig, ancestors
    from launch import model_tables

    return Loaded(
        config=LineageConfig,
        run=lambda config: model_tables.lineage(config, *ancestors(config)),
        expand=lambda words: name_first(words, "--name"),
    )


def _table() -> Loaded:
    from foundation.released import TableConfig, write_table

    def run(config: TableConfig) -> None:
        text = write_table(config)
        print(text if config.out is None else config.out)

    return Loaded(config=TableConfig, run=run)


def _publish() -> Loaded:
    from foundation.publish import PublishConfig, publish
    from launch import model_tables

    return Loaded(config=PublishConfig, run=lambda config: model_tables.published(config, publish(config)))


MODEL_VERBS = {
    "models list": Verb(
        "list the potentials that have a name", _list, group="Potentials by name, here and on the hub:"
    ),
    "models info": Verb("describe a potential", _info),
    "models download": Verb("bring potentials to this machine, or make a copy", _download),
    "models verify": Verb("check the copies on this machine", _verify),
    "models path": Verb("print the folder of a potential", _path),
    "models lineage": Verb("show the weights and the data that a potential comes from", _lineage),
    "models table": Verb("write a table of the released potentials", _table),
    "publish": Verb("put a release on the hub, into a folder or a bucket", _publish),
}
"""Verbs by name."""
