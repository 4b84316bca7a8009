"""What the generation tests borrow from the training tests: the letters tasks."""

from tests.training.conftest import letters as letters
