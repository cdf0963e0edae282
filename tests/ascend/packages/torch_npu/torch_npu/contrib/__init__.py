"""Imported for `transfer_to_npu`."""
