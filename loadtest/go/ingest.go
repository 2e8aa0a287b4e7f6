// The ingest comparison's Go peer: a goroutine a connection, io.CopyN (which splices) to files.
//
// usage: ingest PORT FOLDER MAX
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
)

// land stores a stream in files of at most most bytes; our FIN means that all is written.
func land(peer net.Conn, folder string, series int, most int64) error {
	defer peer.Close()
	for part := 1; ; part++ {
		name := fmt.Sprintf("%s/go_%08d_parte_%06d.bin", folder, series, part)
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
		if err != nil {
			return err
		}
		size, err := io.CopyN(file, peer, most)
		if closing := file.Close(); err == nil {
			err = closing
		}
		if size == 0 {
			os.Remove(name) // the stream ended with the part before
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: ingest PORT FOLDER MAX")
	}
	most, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err != nil || most < 1 {
		log.Fatal("usage: ingest PORT FOLDER MAX")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for series := 1; ; series++ {
		peer, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func(series int) {
			if err := land(peer, os.Args[2], series, most); err != nil {
				log.Fatal(err)
			}
		}(series)
	}
}
