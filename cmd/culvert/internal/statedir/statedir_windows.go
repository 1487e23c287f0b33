package statedir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

// access gives a folder, and what is made in it, to administrators and the
// system alone: the folder above it lets every user make files.
const access = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

// makeDir makes the folder for administrators alone. Whoever can write to
// it decides which routes come back, so what belongs to others is refused.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return err
	}
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return err
	}
	attributes := windows.SecurityAttributes{SecurityDescriptor: sd}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	if err := windows.CreateDirectory(path, &attributes); !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return err
	}
	if err := ownedWithin(dir); err != nil {
		return err
	}
	acl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	const what = windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION
	return windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, what, nil, nil, acl, nil)
}

// ownedWithin looks at the folder, and at each file that it holds.
func ownedWithin(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := owned(dir); err != nil {
		return err
	}
	for _, f := range files {
		if err := owned(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

// owned reports whether a file is an administrator's, the system's or the
// caller's own, who is one of them.
func owned(path string) error {
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return err
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	if owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) || owner.IsWellKnown(windows.WinLocalSystemSid) || owner.Equals(self.User.Sid) {
		return nil
	}
	return &ForeignError{Path: path, Why: fmt.Sprintf("it belongs to %s", owner)}
}
