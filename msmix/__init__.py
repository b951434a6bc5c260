"""MS-Mix and its rivals for multimodal sentiment analysis"""
__version__ = "0.1.0"
__all__ = ['MSMix']


def __getattr__(name):
    "`from msmix import MSMix`, without loading PyTorch for whoever needs only the version"
    if name in __all__:
        from importlib import import_module
        return getattr(import_module('msmix.msmix'), name)
    raise AttributeError(f"module 'msmix' has no attribute '{name}'")
