"""MS-Mix and its rivals for multimodal sentiment analysis"""
__version__ = "0.1.0"
