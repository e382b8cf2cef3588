"""The certificate: the record, the ledger, and what an auditor checks of both."""

from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_unlearn.certificate.certificate import Certificate as Certificate
    from lightning_unlearn.certificate.fields import PublicPart as PublicPart
    from lightning_unlearn.certificate.ledger import Entry as Entry, Ledger as Ledger
    from lightning_unlearn.certificate.verification import (
        Finding as Finding,
        verify_ledger as verify_ledger,
        verify_text as verify_text,
    )
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
