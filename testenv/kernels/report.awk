# Reads what machines said on their second serial port (see init.sh) and prints
# a table and, below it, what failed or was skipped and why. A test counts once
# for itself and once for each subtest. Fails when a test did, or did not run.
function close_package() {
	if (package == "")
		return
	if (ended == "" || ended != 0)
		broken = broken sprintf("  %s %s: %s\n", kernel, package, ended == "" ? "did not end" : "exit code " ended)
	table = table sprintf("%-28s %-30s %6d %6d %7d %6ds\n", kernel, package, pass, fail, skip, took)
	packages++
	package = ""
}
{ sub(/\r$/, "") }
/^== kernel / { close_package(); kernel = $3 }
/^== package / { close_package(); package = $3; pass = fail = skip = took = 0; ended = name = "" }
/^== ended / { ended = $3; took = $5 }
/^=== (RUN|CONT|NAME|PAUSE) / { name = $3 }
/^ +[a-z_0-9]+\.go:[0-9]+: / { sub(/^ +/, ""); said[name] = $0 }
/^[a-z_]*fallback_linux_test.go:[0-9]+: mode / { sub(/^[^ ]+ /, ""); modes = modes sprintf("  %s: %s\n", kernel, $0) }
/^ *--- PASS: / { pass++ }
/^ *--- FAIL: / { fail++; failed = failed sprintf("  %s %s %s: %s\n", kernel, package, $3, said[$3]) }
/^ *--- SKIP: / { skip++; skipped = skipped sprintf("  %s %s %s: %s\n", kernel, package, $3, said[$3]) }
/^panic: / { broken = broken sprintf("  %s %s: %s\n", kernel, package, $0) }
END {
	close_package()
	printf "%-28s %-30s %6s %6s %7s %7s\n%s", "kernel", "package", "passed", "failed", "skipped", "time", table
	if (modes) printf "the witness:\n%s", modes
	if (skipped) printf "skipped:\n%s", skipped
	if (failed) printf "failed:\n%s", failed
	if (broken) printf "broken:\n%s", broken
	if (packages < want)
		printf "broken:\n  %d packages ran of %d\n", packages, want
	exit !!(failed || broken || packages < want)
}
