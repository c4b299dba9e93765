@echo off
rem Installs what is missing, then starts the program with the flags given; see run.bat --help.
setlocal
cd /d "%~dp0"

rem step: environment
set "PYTHON=.venv\Scripts\python.exe"
if exist ".venv\python.exe" set "PYTHON=.venv\python.exe"

rem step: install if needed
"%PYTHON%" scripts\install.py --check >nul 2>&1
rem Not "if errorlevel 1": an interpreter that crashes ends with a number below 0.
if not "%ERRORLEVEL%"=="0" (
  call "%~dp0install.bat"
  if errorlevel 1 exit /b 1
)
if exist ".venv\python.exe" set "PYTHON=.venv\python.exe"

rem step: start
"%PYTHON%" webui.py %*
exit /b %ERRORLEVEL%
