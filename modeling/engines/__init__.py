"""What samples responses: our own decoder, transformers' `generate`, or vLLM, behind one interface
(docs/engines.md).
"""
