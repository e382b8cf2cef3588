"""The report: one page for a data-protection officer, from a certificate."""

from lightning_unlearn.certificate.report.evidence import (
    Evidence as Evidence,
    Quality as Quality,
)
from lightning_unlearn.certificate.report.ledger_table import (
    ledger_table as ledger_table,
)
from lightning_unlearn.certificate.report.page import render as render, write as write
