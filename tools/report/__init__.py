"""The report of a job as one HTML file: tables and pictures, nothing loaded from elsewhere."""

from planish.tools.report.page import write_report as write_report
