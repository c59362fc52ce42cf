"""Report -> verdict (pure) -> release row; rollback and manifests.

Owns the decision (`gate`) and the pointer to what is served (`publish`); never measures, never talks to a server,
never imports torch.
"""
