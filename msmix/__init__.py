"""MS-Mix and its rivals for multimodal sentiment analysis"""
__version__ = "0.1.0"
_places = {'MSMix': 'mixers.msmix', 'load_dataset': 'data.load', 'load_runs': 'runs.frame', 'score': 'runs.metrics',
           'check_mixer': 'mixers.contract', 'check_backbone': 'backbones.base'}
__all__ = [*_places]


def __dir__(): return [*globals(), *__all__]


def __getattr__(name):
    "`from msmix import MSMix`, without loading PyTorch for whoever needs only the version"
    if name in _places:
        from importlib import import_module
        return getattr(import_module(f'msmix.{_places[name]}'), name)
    raise AttributeError(f"module 'msmix' has no attribute '{name}'")
