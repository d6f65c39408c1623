"""Imports what a real app of some size imports. Nothing here is used: the time and the memory are the point."""

# ruff: noqa: F401
import concurrent.futures.process
import decimal
import email.mime.multipart
import ftplib
import imaplib
import multiprocessing.pool
import pydoc
import smtplib
import sqlite3
import tarfile
import unittest.mock
import xml.dom.minidom
import xml.etree.ElementTree
import xmlrpc.client
import zipfile

import fastapi
import fastapi.openapi.utils
import fastapi.testclient
import httpx2
