package enforce

import (
	"fmt"
	"os"
)

// securer is a Journal that can lose its place while it is in use.
type securer interface {
	// Secure returns nil when what is held would survive a crash now.
	Secure() error
}

// Folder sets what makes the journal's folder again when it was taken away. Its
// error says why nothing may be kept there: the folder may be another user's
// now. It must be set before the journal is used by another goroutine.
func (j *FileJournal) Folder(prepare func() error) { j.folder = prepare }

// Secure sees to it that the journal's name still leads to the file that is
// written to. A file that was removed or replaced keeps nothing beyond a crash:
// all that is held is written down anew, durable on return. What has the name
// now is replaced. The error says why that cannot be done yet.
func (j *FileJournal) Secure() error {
	if j.stands() {
		return nil
	}
	if err := j.prepare(); err != nil {
		return fmt.Errorf("the journal %s was taken away: %w", j.path, err)
	}
	if err := j.rewrite(); err != nil {
		return fmt.Errorf("the journal %s was taken away: %w", j.path, err)
	}
	return nil
}

// stands reports whether the name leads to the open file.
func (j *FileJournal) stands() bool {
	named, err := os.Lstat(j.path)
	if err != nil {
		return false
	}
	open, err := j.file.Stat()
	return err == nil && os.SameFile(named, open)
}

func (j *FileJournal) prepare() error {
	if j.folder == nil {
		return nil
	}
	return j.folder()
}
