"""The contracts between memdiag's parts: the custom resources, and the document that a node runner hands over."""
