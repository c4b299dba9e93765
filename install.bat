@echo off
rem Makes or mends the environment in .venv; see install.bat --help. Safe to run again.
setlocal
cd /d "%~dp0"

rem step: find Python
set "PYTHON="
if not "%AUDIOCRAFT_WEBUI_PYTHON%"=="" set PYTHON="%AUDIOCRAFT_WEBUI_PYTHON%"
for %%C in ("py -3.11" "py -3.12" "py -3.10" "python3" "python") do (
  if not defined PYTHON (
    %%~C -c "import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))" >nul 2>&1 && set "PYTHON=%%~C"
  )
)
rem Conda brings the environment's Python: whichever runs the installer will do.
for %%A in (%*) do (
  if "%%~A"=="--conda" if not defined PYTHON (
    python -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>&1 && set "PYTHON=python"
  )
)

rem step: no Python
if not defined PYTHON (
  echo install: no Python 3.10, 3.11 or 3.12 with venv was found. 1>&2
  echo install: install Python 3.11 from python.org and tick "Add python.exe to PATH", 1>&2
  echo install: or name one: set AUDIOCRAFT_WEBUI_PYTHON=C:\path\to\python.exe 1>&2
  exit /b 1
)

rem step: install
%PYTHON% scripts\install.py %*
exit /b %ERRORLEVEL%
